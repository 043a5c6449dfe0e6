-- Renew a lease.
-- KEYS, ARGV[1], ARGV[2] and ARGV[4] as leader_stand.lua has them; ARGV[3] is the token of the leader.
-- Returns 1, or 0 when the leadership is lost.
local lease, fence = KEYS[1], KEYS[2]
local holder = redis.call('GET', lease)
local last = redis.call('GET', fence)
if holder == ARGV[1] and last then
  -- Both commands work in a server that has no memory left, where SET would not.
  redis.call('PEXPIRE', lease, ARGV[2])
  redis.call('PEXPIRE', fence, ARGV[4])
  return 1
end
local nobody_since = not last or last == '0' or (not holder and last == ARGV[3])
if (not holder or holder == '' or holder == ARGV[1]) and nobody_since then
  -- The data is lost, or the lease ran out by a leap of the server's clock, and nobody was elected since.
  redis.call('SET', fence, ARGV[3], 'PX', ARGV[4])
  redis.call('SET', lease, ARGV[1], 'PX', ARGV[2])
  return 1
end
return 0
