-- Finish entries, and forget what was noted of them. Atomic.
--
-- KEYS       stream, due, notes; see claim.lua
-- ARGV[1]    group
-- ARGV[2]..  entry ids
--
-- Returns    how many of them were pending.

local acknowledged = 0
for at = 2, #ARGV do
  acknowledged = acknowledged + redis.call('XACK', KEYS[1], ARGV[1], ARGV[at])
  redis.call('ZREM', KEYS[2], ARGV[at])
  redis.call('HDEL', KEYS[3], ARGV[at])
end
return acknowledged
