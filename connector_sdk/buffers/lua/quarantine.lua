-- Put events of a lease aside that could not be decoded.
--
-- ARGV[5]    lease
-- ARGV[6]   how many are kept at most, the newest
-- ARGV[7..] tickets
--
-- Returns    the head of every reply, then: 1, or 0 when there is no such lease any more.

local up = upkeep()
up.open_to_move()
local lease = ARGV[5]
if not up.is_held(lease) then
  up.close()
  return reply_with(0)
end
local lease_key, acked_key, quarantine_key = tag .. ':lease:' .. lease, tag .. ':acked:' .. lease, tag .. ':quarantine'
local total, gone, members = call('LLEN', lease_key) / 2, 0, {}
local held = up.held_by(lease, math.max(0, total - call('SCARD', acked_key)))
for index = 7, #ARGV do
  local ticket = tonumber(ARGV[index])
  if ticket < total and call('SADD', acked_key, ticket) == 1 then
    members[#members + 1] = call('LINDEX', lease_key, ticket * 2 + 1)
    call('RPUSH', quarantine_key, call('LINDEX', lease_key, ticket * 2), members[#members])
    gone = gone + 1
  end
end
call('LTRIM', quarantine_key, -2 * tonumber(ARGV[6]), -1)
call('PEXPIRE', quarantine_key, lifetime)
call('PEXPIRE', acked_key, math.max(1, call('PTTL', lease_key)))
up.let_go_members(members)
gone = math.min(gone, held)
up.hold_less(lease, gone)
account.leased = account.leased - gone
drop('undecodable', gone)
up.close()
return reply_with(1)
