-- Say that a consumer lives.
--
-- KEYS       alive (ZSET consumer -> deadline in ms) of each stream, all of one slot
-- ARGV[1]    consumer
-- ARGV[2]    hold in ms: how long it counts as alive from now
-- ARGV[3]    ms after which side keys expire that nobody uses
--
-- Returns    the server's time in ms.

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
for _, alive in ipairs(KEYS) do
  redis.call('ZADD', alive, now + ARGV[2], ARGV[1])
  redis.call('PEXPIRE', alive, ARGV[2] + ARGV[3])
end
return now
