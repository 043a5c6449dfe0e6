-- Let entries of a consumer come again to any consumer, at once or later. Atomic.
--
-- KEYS       stream, due, notes; see claim.lua
-- ARGV[1]    group
-- ARGV[2]    consumer
-- ARGV[3]    ms after which side keys expire that nobody uses
-- ARGV[4]    ms from now until the entries are due
-- ARGV[5]    1 to write ARGV[6] as the notes of each entry, 0 to leave the notes as they are
-- ARGV[6]    notes
-- ARGV[7]..  for each entry: id, what its delivery counter is to be
--
-- Returns    how many entries were released, and how many were trimmed. One that the consumer has no more (it was acknowledged,
--            or somebody took it over) is left alone; one that the stream has no more is finished.

local call = redis.call
local stream, due, notes = KEYS[1], KEYS[2], KEYS[3]
local clock = call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
-- What comes again at once comes in the order of the stream: its time is that of its id.
local function time_of(id)
  local ms, number = string.match(id, '(%d+)-(%d+)')
  return math.min(now, ms + math.min(number, 4095) / 4096)
end

local released, trimmed = 0, 0
local found = redis.pcall('EXISTS', stream)
if found == 0 then
  return { 0, 0 }
end
for at = 7, #ARGV, 2 do
  local id = ARGV[at]
  local pending = redis.pcall('XPENDING', stream, ARGV[1], id, id, 1, ARGV[2])
  if pending.err then
    if string.find(pending.err, 'NOGROUP', 1, true) then
      return { 0, trimmed }
    end
    return pending
  end
  if pending[1] then
    if #call('XRANGE', stream, id, id) == 0 then
      call('XACK', stream, ARGV[1], id)
      call('HDEL', notes, id)
      trimmed = trimmed + 1
    else
      call('ZADD', due, ARGV[4] == '0' and time_of(id) or now + ARGV[4], id)
      if ARGV[5] == '1' and ARGV[6] ~= '' then
        call('HSET', notes, id, ARGV[6])
      elseif ARGV[5] == '1' then
        call('HDEL', notes, id)
      end
      call('XCLAIM', stream, ARGV[1], '-', 0, id, 'RETRYCOUNT', ARGV[at + 1], 'JUSTID')
      released = released + 1
    end
  end
end
for _, key in ipairs({ due, notes }) do
  local life = ARGV[3] + ARGV[4]
  if call('PTTL', key) < life then
    call('PEXPIRE', key, life)
  end
end
return { released, trimmed }
