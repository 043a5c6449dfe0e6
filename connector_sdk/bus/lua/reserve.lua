-- Give a key to a holder, if nobody has it and its work is not done; who has it already renews it.
--
-- KEYS[4]   <tag>:once:<key>
-- ARGV[1]   holder
-- ARGV[2]   for how long (ms)
--
-- Returns   "yours", "done" or "taken".

local key, holder = KEYS[4], ARGV[1]
local current = call('HGET', key, 'h')
if current and call('HGET', key, 'd') then
  return 'done'
end
if current and current ~= holder then
  return 'taken'
end
call('HSET', key, 'h', holder)
call('PEXPIRE', key, ARGV[2])
return 'yours'
