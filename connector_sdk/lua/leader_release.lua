-- Give a leadership up, so that the next candidate need not wait for the lease to run out.
-- KEYS[1]  the lease
-- ARGV[1]  the leader or candidate
-- Returns 1, or 0 when it was not theirs.
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
