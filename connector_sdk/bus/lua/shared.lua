-- What every script of this folder begins with: this file is put in front of each.
--
-- KEYS[1..3]  <tag>:topics, <tag>:catalogue, <tag>:state, where <tag> is {<key_prefix>}. The braces are a hash tag: all keys of
--             a bus live in one slot of a cluster.
--
-- Data model. Every key has an expiry, renewed while it is of use.
--
--   <tag>:topic:<topic>       STREAM  the entries of a topic; one field, "b": the body. Groups are groups of this stream
--   <tag>:topics              ZSET    topic; score: when it was looked after last (ms). Streams that expired may still be named
--   <tag>:catalogue           STREAM  "t": topic, each time that a topic began, for readers who wait for new ones
--   <tag>:state               HASH    since -> when this storage began (ms): later than what a reader knows if data was lost;
--                                     born:<topic> -> id below its first entry; trimmed:<topic> -> id of the last entry that
--                                     retention took; lost:<length of topic>:<topic>:<group> -> entries that retention took
--                                     before the group was given them
--   <tag>:again:<length of group>:<group>:<topic>  STREAM  redriven dead letters of a group: "b" body, "p" position, "e" evidence
--   <tag>:dead:<topic>        STREAM  dead letters: "p" position, "b" body, "e" evidence, and "g" the group if there is one
--   <tag>:buried              ZSET    topic that has dead letters; score: when the last was buried (ms)
--   <tag>:once:<key>          HASH    work that is to be done once: "h" who has the key, or had it, and "d" if it is done
--
-- What a script does is atomic. The clock is the server's.

local call = redis.call
local topics_key, catalogue_key, state_key = KEYS[1], KEYS[2], KEYS[3]
local clock = call('TIME')
local WEEK = 7 * 86400000
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function whole(number)
  return string.format('%.0f', number)
end

local function parts(id)
  local ms, sequence = string.match(id, '^(%d+)%-(%d+)$')
  return tonumber(ms), tonumber(sequence)
end

local function is_before(one, other)
  local ms, sequence = parts(one)
  local other_ms, other_sequence = parts(other)
  return ms < other_ms or (ms == other_ms and sequence < other_sequence)
end

-- The last id before a time.
local function before(ms)
  return whole(ms - 1) .. '-18446744073709551615'
end

-- Let *key*, if it is there, live for *ms* milliseconds or more.
local function keep(key, ms)
  local left = call('PTTL', key)
  if left < ms or left == -1 then
    call('PEXPIRE', key, whole(math.max(1, ms)))
  end
end

-- What is known of all lives longer than any topic: a bus that was not used for days is not one that lost its data.
local function keep_catalogue(ms)
  for _, key in ipairs({ topics_key, catalogue_key, state_key }) do
    keep(key, math.max(1.1 * ms, WEEK))
  end
end

local function announce(topic, ms)
  call('HSETNX', state_key, 'since', whole(now))
  call('ZADD', topics_key, whole(now), topic)
  -- Before anything is in its stream: a reader that is blocked on both is told of the topic first.
  call('XADD', catalogue_key, 'MAXLEN', '~', 10000, '*', 't', topic)
  keep_catalogue(ms)
end

-- Make the stream of a topic, empty, if there is none.
local function begin(topic, stream, ms)
  if call('EXISTS', stream) == 1 then
    return
  end
  announce(topic, ms)
  call('HSET', state_key, 'born:' .. topic, before(now))
  call('XGROUP', 'CREATE', stream, '-', '$', 'MKSTREAM')
  call('XGROUP', 'DESTROY', stream, '-')
  call('PEXPIRE', stream, whole(ms))
end

-- The values of an XINFO reply by name.
local function facts_of(reply)
  local facts = {}
  for index = 1, #reply, 2 do
    facts[reply[index]] = reply[index + 1]
  end
  return facts
end
