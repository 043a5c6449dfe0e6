-- What every script of this folder begins with: this file is put in front of each, then upkeep.lua.
--
-- KEYS[1]   <tag>:state, where <tag> is {<key_prefix>:<shard>}. The braces are a hash tag: all keys of a shard live in one
--           slot of a cluster. The other keys are derived from this one; no script touches keys of two shards.
-- ARGV[1]   six big-endian doubles: window of a session; lifetime of an idle key, which is window and grace; how long the
--           id of an event is known after the event has gone (all in milliseconds); how many events one call may move for
--           housekeeping; 1 if events are ordered by their own time, 0 if by their arrival; about how many bytes of events one
--           call may return
-- ARGV[2]   the epoch that the caller saw last, "" without one
-- ARGV[3]   how many events the caller then saw, waiting and on lease
-- ARGV[4]   why they are gone if that epoch is over: a drop reason
--
-- Data model of a shard. Every key expires its lifetime after it was last of use; ids live longer, as told above, and so do
-- the keys of dead letters: as long as one is kept, from the last burial or redriving.
--
--   <tag>:session:<id>   ZSET  the waiting events of a session; score: time in seconds; member: see below
--   <tag>:no-session     ZSET  the same for events without a session; "session:<id>" and "no-session" are called labels
--   <tag>:state          HASH  account -> packed, see open_account; label -> packed state of the session, see pack_state;
--                              writer:<id> -> which batches of this writer came, see append.lua
--   <tag>:heads          ZSET  the oldest event of each session; score: its time; member: its arrival .. label
--   <tag>:touched        ZSET  label; score: when its session was last written, in milliseconds (a second less at most)
--   <tag>:ids            ZSET  origin \255 event id; score: minus the arrival in ms while the event is here, then the time
--                              in ms after which the id is forgotten
--   <tag>:leases         ZSET  lease; score: when it runs out, in milliseconds
--   <tag>:held           HASH  lease -> how many events it holds that are not acknowledged
--   <tag>:lease:<lease>  LIST  label, member of each of its events, two entries an event; the n-th has ticket n, from 0
--   <tag>:acked:<lease>  SET   tickets that were acknowledged
--   <tag>:known:<lease>  LIST  origin \255 event id of its events that have one
--   <tag>:quarantine     LIST  label, member of events that could not be decoded
--   <tag>:dead           ZSET  arrival (7 bytes) of each dead letter; score: when it was buried, in microseconds, each another
--   <tag>:letters        HASH  arrival -> packed letter, see letters.lua; also for those that were redriven
--   <tag>:redriven       ZSET  arrival of letters that wait again, or did; score: since when, in microseconds
--   <tag>:drops          HASH  reason -> events dropped
--   <tag>:writers        HASH  writer -> batches, of writers that have not been heard of for long
--
-- A member is: arrival (7 bytes, microseconds, unique and growing in the shard), time (8 bytes, the score), kind ("a"
-- actions, "s" summary, "u" any other), then <length in hexadecimal>:<bytes> of the event id (":" alone without one), of
-- the origin (only with an event id), of the type (only with kind "u"), then the body. So ties of score come in order of
-- arrival.
--
-- The clock is the server's. What a script does is atomic: no other command runs in between.

local call = redis.call
local tag = string.sub(KEYS[1], 1, -7)
local state_key, heads_key, touched_key = KEYS[1], tag .. ':heads', tag .. ':touched'
local ids_key, drops_key = tag .. ':ids', tag .. ':drops'
local window, lifetime, remember, budget, by_event, most_bytes = struct.unpack('>dddddd', ARGV[1])
local clock = call('TIME')
local now_us = clock[1] * 1000000 + clock[2]
local now_ms, now = math.floor(now_us / 1000), now_us / 1000000
local often = math.min(1000, lifetime / 20) -- milliseconds; what is put off so often is not put off more often

local account = {}
local dropped -- reason -> events given up by this call

local function exact(number)
  return string.format('%.17g', number)
end

-- The state of a session: events, time of the newest, time and arrival of the oldest, last written when (milliseconds).
local function pack_state(size, newest, time, arrival, touched)
  return struct.pack('>dddc7d', size, newest, time, arrival, touched)
end

-- Call a command with a key and any number of values. Redis and Lua take a few thousand in one call at most.
local function call_with(values, command, key, option)
  for first = 1, #values, 2000 do
    local last = math.min(first + 1999, #values)
    if option then
      call(command, key, option, unpack(values, first, last))
    else
      call(command, key, unpack(values, first, last))
    end
  end
end

local function drop(reason, number)
  if number > 0 then
    dropped = dropped or {}
    dropped[reason] = (dropped[reason] or 0) + number
  end
end

-- Take the account apart.
local function open_account(packed)
  account.epoch, account.seq, account.received, account.delivered, account.buffered, account.leased, account.skewed, account.ids, account.kept, account.fresh =
    struct.unpack('>c14ddddddddd', packed)
end

-- Put the account together, and let no key of the shard expire before its time. A shard with nothing in it is left to
-- expire, unless *is_used*.
local function close_account(is_used)
  if now_ms - account.fresh >= often and (is_used or account.is_new or account.buffered + account.leased > 0) then
    account.fresh = now_ms
  end
  return struct.pack(
    '>c14ddddddddd', account.epoch, account.seq, account.received, account.delivered, account.buffered, account.leased,
    account.skewed, account.ids, account.kept, account.fresh
  )
end

-- Let the ids live as long as they may be wanted: longer than this with events on a long lease.
local function keep_ids()
  if account.leased == 0 or call('PTTL', ids_key) < lifetime + remember then
    call('PEXPIRE', ids_key, lifetime + remember)
  end
end

-- To be called when the account was written.
local function finish()
  if dropped then
    for reason, number in pairs(dropped) do
      call('HINCRBY', drops_key, reason, number)
    end
    call('PEXPIRE', drops_key, lifetime)
  end
  if account.fresh == now_ms then
    call('PEXPIRE', state_key, lifetime)
    call('PEXPIRE', heads_key, lifetime)
    call('PEXPIRE', touched_key, lifetime)
    call('PEXPIRE', drops_key, lifetime)
    if account.ids == 1 then
      keep_ids()
    end
  end
end

-- What each reply begins with: epoch, waiting, on lease, then as many pairs of reason and number as the next says.
local function reply_with(...)
  local reply = { account.epoch, account.buffered, account.leased, 0 }
  if dropped then
    for reason, number in pairs(dropped) do
      reply[#reply + 1] = reason
      reply[#reply + 1] = number
      reply[4] = reply[4] + 1
    end
  end
  for _, value in ipairs({ ... }) do
    reply[#reply + 1] = value
  end
  return reply
end
