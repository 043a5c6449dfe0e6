-- Let what a lease still has wait again, at its old places; the lease ends.
--
-- ARGV[5]    lease
-- ARGV[6]   1 in the first call, 0 when going on with it
--
-- Returns    the head of every reply, then: 1, or 0 when there is no such lease any more; 1 when there is more to return
--            and this must be called again, else 0. Whoever calls next of any script goes on if the caller does not.

local up = upkeep()
up.open_to_move()
local lease = ARGV[5]
if not up.is_held(lease) and (ARGV[6] == '1' or not call('ZSCORE', up.leases_key, lease)) then
  up.close()
  return reply_with(0, 0)
end
call('ZADD', up.leases_key, 0, lease) -- it has run out, for everybody
local is_empty = up.return_events(lease, budget)
up.close()
return reply_with(1, is_empty and 0 or 1)
