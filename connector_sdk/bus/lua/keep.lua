-- Mark the work of a key as done, unless another has the key or has marked it.
--
-- KEYS[4]   <tag>:once:<key>
-- ARGV[1]   holder
-- ARGV[2]   for how long (ms)
--
-- Returns   1 if it is marked, else 0. A second call of the same holder marks it anew.

local key, holder = KEYS[4], ARGV[1]
local current = call('HGET', key, 'h')
if current and current ~= holder then
  return 0
end
call('HSET', key, 'h', holder, 'd', '1')
call('PEXPIRE', key, ARGV[2])
return 1
