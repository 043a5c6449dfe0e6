-- Let events of a lease go for good.
--
-- ARGV[5]    lease
-- ARGV[6]   "" when they were delivered, else the reason why they are dropped
-- ARGV[7]   how many tickets follow, or -1: all that the lease still has, and the lease ends
--            then the tickets; then how many entries of ids follow, and those: what these events are known as
--
-- Returns    the head of every reply, then: 1, or 0 when there is no such lease any more; how many events went.

local up = upkeep()
up.open_to_move()
local lease = ARGV[5]
if not up.is_held(lease) then
  up.close()
  return reply_with(0, 0)
end
local lease_key, acked_key, known_key = tag .. ':lease:' .. lease, tag .. ':acked:' .. lease, tag .. ':known:' .. lease
local total, gone = call('LLEN', lease_key) / 2, 0
local tickets = tonumber(ARGV[7])
local found = math.max(0, total - call('SCARD', acked_key))
local held = up.held_by(lease, found)
if tickets < 0 then
  gone = math.min(found, held)
  account.leased = account.leased - (held - gone)
  drop('lost', held - gone)
  up.let_go(call('LRANGE', known_key, 0, -1))
  call('UNLINK', lease_key, acked_key, known_key)
  call('ZREM', up.leases_key, lease)
  call('HDEL', up.held_key, lease)
else
  for index = 8, 7 + tickets do
    if tonumber(ARGV[index]) < total then
      gone = gone + call('SADD', acked_key, ARGV[index])
    end
  end
  local names = {}
  for index = 9 + tickets, 8 + tickets + tonumber(ARGV[8 + tickets]) do
    names[#names + 1] = ARGV[index]
  end
  up.let_go(names)
  gone = math.min(gone, held)
  up.hold_less(lease, gone)
  call('PEXPIRE', acked_key, math.max(1, call('PTTL', lease_key)))
end
account.leased = account.leased - gone
if ARGV[6] == '' then
  account.delivered = account.delivered + gone
else
  drop(ARGV[6], gone)
end
up.close()
return reply_with(1, gone)
