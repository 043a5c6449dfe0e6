-- Let a lease run out later, or sooner.
--
-- ARGV[5]    lease
-- ARGV[6]   how long it holds from now, in milliseconds
--
-- Returns    the head of every reply, then: 1, or 0 when there is no such lease any more.

local up = upkeep()
up.open_to_move()
if not up.is_held(ARGV[5]) then
  up.close()
  return reply_with(0)
end
up.keep_lease_keys(ARGV[5], tonumber(ARGV[6]))
up.close()
return reply_with(1)
