-- Move events of a lease to the dead letters, each with its evidence.
--
-- ARGV[5]    lease
-- ARGV[6]   most dead letters of the shard; beyond it those buried first go
-- ARGV[7]   how long a dead letter is kept, in milliseconds
-- ARGV[8..] ticket, evidence of each event
--
-- Returns    the head of every reply, then: 1, or 0 when there is no such lease any more.
--
-- Events that have left the lease before are passed over, so the same call may come again. One that was redriven keeps the
-- evidence of its earlier deaths.

local up = upkeep()
up.open_to_move()
local lease = ARGV[5]
if not up.is_held(lease) then
  up.close()
  return reply_with(0)
end
local letters = dead_letters(up)
local lease_key, acked_key = tag .. ':lease:' .. lease, tag .. ':acked:' .. lease
local total, gone, members = call('LLEN', lease_key) / 2, 0, {}
local held = up.held_by(lease, math.max(0, total - call('SCARD', acked_key)))
for index = 8, #ARGV, 2 do
  local ticket = tonumber(ARGV[index])
  if ticket < total and call('SADD', acked_key, ticket) == 1 then
    local member = call('LINDEX', lease_key, ticket * 2 + 1)
    letters.bury(call('LINDEX', lease_key, ticket * 2), member, ARGV[index + 1])
    members[#members + 1] = member
    gone = gone + 1
  end
end
letters.trim(tonumber(ARGV[6]), tonumber(ARGV[7]))
letters.keep(tonumber(ARGV[7]))
call('PEXPIRE', acked_key, math.max(1, call('PTTL', lease_key)))
up.let_go_members(members)
gone = math.min(gone, held)
up.hold_less(lease, gone)
account.leased = account.leased - gone
drop('dead_letter', gone)
up.close()
return reply_with(1)
