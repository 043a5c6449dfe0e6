-- Look after one topic: let go what retention says, renew expiries, keep the catalogue true.
--
-- KEYS[4]   its stream
-- ARGV[1]   topic
-- ARGV[2]   how many entries are kept
-- ARGV[3]   how long (ms)
-- ARGV[4]   how many are kept at most for groups that have not finished them
-- ARGV[5]   how long at most for these (ms)
--
-- Returns   1 if there is more to let go, else 0; then up to 3 topics that nobody has looked after for long.
--
-- Entries that a group has not finished (from its oldest pending one on, or from the first it was not given) stay, unless
-- the bounds of ARGV[4] and ARGV[5] are passed: of those the entries that a group was not given yet are counted for it.

local stream, topic = KEYS[4], ARGV[1]
local most, age = tonumber(ARGV[2]), tonumber(ARGV[3])
local hard_most, hard_age = tonumber(ARGV[4]), tonumber(ARGV[5])
local BUDGET = 2000 -- entries that one call lets go at most
local CHUNK_BYTES = 262144

local function stale()
  return call('ZRANGEBYSCORE', topics_key, '-inf', whole(now - age), 'LIMIT', 0, 3)
end

if call('EXISTS', stream) == 0 then
  call('ZREM', topics_key, topic)
  call('HDEL', state_key, 'born:' .. topic, 'trimmed:' .. topic)
  return { 0, unpack(stale()) }
end

-- How far each group is, and the first entry that some group needs; nil if none does.
local groups, needed = {}, nil
for _, reply in ipairs(call('XINFO', 'GROUPS', stream)) do
  local facts = facts_of(reply)
  local group = { name = facts.name, delivered = facts['last-delivered-id'], lost = 0 }
  groups[#groups + 1] = group
  local first
  if facts.pending > 0 then
    first = call('XPENDING', stream, group.name)[2]
  else
    local ms, sequence = string.match(group.delivered, '^(%d+)%-(%d+)$')
    first = ms .. '-' .. whole(tonumber(sequence) + 1)
  end
  if not needed or is_before(first, needed) then
    needed = first
  end
end

local length, gone, last = call('XLEN', stream), 0, nil

local function goes(id)
  local ms = parts(id)
  if length > hard_most or ms < now - hard_age then
    return true
  end
  return (length > most or ms < now - age) and (not needed or is_before(id, needed))
end

local chunk, more = 1, length > 0
while more and gone < BUDGET do
  local entries, cut = call('XRANGE', stream, last and '(' .. last or '-', '+', 'COUNT', chunk), 0
  for _, entry in ipairs(entries) do
    if not goes(entry[1]) then
      break
    end
    cut, length, last = cut + 1, length - 1, entry[1]
    for _, group in ipairs(groups) do
      if is_before(group.delivered, last) then
        group.lost = group.lost + 1
      end
    end
  end
  gone = gone + cut
  more = #entries > 0 and cut == #entries
  -- The next ones are likely to be as large; a script must not hold them all.
  local size = #entries > 0 and #(entries[1][2][2] or '') or 0
  chunk = math.max(1, math.min(200, math.floor(CHUNK_BYTES / (size + 1))))
end

if last then
  local ms, sequence = string.match(last, '^(%d+)%-(%d+)$')
  call('XTRIM', stream, 'MINID', ms .. '-' .. whole(tonumber(sequence) + 1))
  call('HSET', state_key, 'trimmed:' .. topic, last)
  for _, group in ipairs(groups) do
    if group.lost > 0 then
      call('HINCRBY', state_key, 'lost:' .. #topic .. ':' .. topic .. ':' .. group.name, group.lost)
    end
  end
end

-- A group is kept as long as its entries would be, so that it finds its place again. From the last entry on: to be looked after
-- is no use that keeps a topic.
local lifetime = 1.2 * (#groups > 0 and math.max(age, hard_age) or age)
local used = parts(facts_of(call('XINFO', 'STREAM', stream))['last-generated-id'])
keep(stream, call('PTTL', stream) == -1 and lifetime or math.min(lifetime, used + lifetime - now))
if not call('ZSCORE', topics_key, topic) then
  -- A member of a group has made the stream after the storage had lost all.
  local first = call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
  call('HSETNX', state_key, 'born:' .. topic, before(first and parts(first[1]) or now))
  announce(topic, lifetime)
end
call('ZADD', topics_key, whole(now), topic)
call('HSETNX', state_key, 'since', whole(now))
keep_catalogue(lifetime)
return { more and 1 or 0, unpack(stale()) }
