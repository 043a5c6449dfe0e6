-- A consumer leaves the group of a stream: what it has comes again to the others at once. Atomic.
--
-- KEYS       stream, due, notes, alive; see claim.lua
-- ARGV[1]    group
-- ARGV[2]    consumer
-- ARGV[3]    ms after which side keys expire that nobody uses
-- ARGV[4]    1 to release what it has; 0 to leave it pending, for a consumer of the same name that comes later
-- ARGV[5]    most entries to release
--
-- Returns    1 when the consumer is gone, 0 when it has more to release and this is to be called again.

local call = redis.call
local stream, due, alive = KEYS[1], KEYS[2], KEYS[4]
local clock = call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
-- What comes again at once comes in the order of the stream: its time is that of its id.
local function time_of(id)
  local ms, number = string.match(id, '(%d+)-(%d+)')
  return math.min(now, ms + math.min(number, 4095) / 4096)
end

local page = redis.pcall('XPENDING', stream, ARGV[1], '-', '+', ARGV[5], ARGV[2])
if page.err then
  if string.find(page.err, 'NOGROUP', 1, true) then
    call('ZREM', alive, ARGV[2])
    return 1
  end
  return page
end
if ARGV[4] == '0' and #page > 0 then
  call('ZREM', alive, ARGV[2])
  return 1
end
for _, pending in ipairs(page) do
  call('ZADD', due, time_of(pending[1]), pending[1])
  call('XCLAIM', stream, ARGV[1], '-', 0, pending[1], 'RETRYCOUNT', pending[4], 'JUSTID')
end
if #page > 0 then
  for _, key in ipairs({ due, KEYS[3] }) do
    if call('PTTL', key) < tonumber(ARGV[3]) then
      call('PEXPIRE', key, ARGV[3])
    end
  end
end
-- Those that were trimmed stay with this consumer on some servers.
local rest = call('XPENDING', stream, ARGV[1], '-', '+', 1, ARGV[2])
if #rest > 0 and #page == tonumber(ARGV[5]) then
  return 0
end
if #rest == 0 then
  call('XGROUP', 'DELCONSUMER', stream, ARGV[1], ARGV[2])
end
call('ZREM', alive, ARGV[2])
return 1
