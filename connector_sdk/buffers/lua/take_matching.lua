-- Move events of given sessions, all or those of some types, to a lease.
--
-- ARGV[5]    lease
-- ARGV[6]   how long it holds from now, in milliseconds
-- ARGV[7]   most events to take, 1 or more
-- ARGV[8]   most events to look at, 1 or more
-- ARGV[9]   how many types follow, -1 for every type; then the types
--            then: how many sessions follow, and for each: label, time and arrival of the event after which to look
--            ("-inf" and "" for all)
--
-- Returns    the head of every reply, then: 1 if housekeeping comes first and this must be called again, else 0; ticket
--            of the first event; how many of the sessions were looked through; time and arrival after which to go on in
--            the next one; then the member of each event, session by session, oldest first within each.

local up = upkeep()
up.open_to_move()
if not up.keep_house() then
  up.close()
  return reply_with(1, 0, 0, '', '')
end
up.mend_index()

local lease, hold, limit, look = ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local wanted, every_type = {}, ARGV[9] == '-1'
local at = 10
for _ = 1, tonumber(ARGV[9]) do
  wanted[ARGV[at]] = true
  at = at + 1
end

local entries, taken, looked_at, bytes, finished = {}, 0, 0, 0, 0
local after_time, after_arrival = '-inf', ''

-- Choose events of one session; returns whether it was looked through, and the events.
local function choose(label, key)
  local from_time, from_arrival = after_time, after_arrival
  local rank = from_time == '-inf' and 0 or call('ZCOUNT', key, '-inf', '(' .. from_time)
  local from_order = from_arrival ~= '' and up.order_of(from_arrival) or -1
  local chosen, is_through = {}, false
  while not is_through and taken < limit and looked_at < look and bytes < most_bytes do
    local step = math.min(looked_at == 0 and 16 or 100, limit - taken, look - looked_at)
    local chunk = call('ZRANGE', key, rank, rank + step - 1, 'WITHSCORES')
    rank = rank + step
    is_through = #chunk < 2 * step
    for index = 1, #chunk, 2 do
      local member, time = chunk[index], chunk[index + 1]
      local arrival = up.arrival_of(member)
      if time ~= from_time or up.order_of(arrival) > from_order then
        looked_at = looked_at + 1
        bytes = bytes + #member
        after_time, after_arrival = time, arrival
        if every_type or wanted[up.type_of(member)] then
          entries[#entries + 1] = label
          entries[#entries + 1] = member
          chosen[#chosen + 1] = member
          taken = taken + 1
        end
      end
    end
  end
  return is_through, chosen
end

for index = at + 1, at + 3 * tonumber(ARGV[at]), 3 do
  if taken >= limit or looked_at >= look or bytes >= most_bytes then
    break
  end
  local label = ARGV[index]
  local key = tag .. ':' .. label
  after_time, after_arrival = ARGV[index + 1], ARGV[index + 2]
  local state = call('HGET', state_key, label)
  state = state and up.unpack_state(state)
  local size = call('ZCARD', key)
  local is_through, chosen = choose(label, key)
  call_with(chosen, 'ZREM', key)
  if state or size > 0 then
    up.settle_session(label, state, size, #chosen)
  end
  if not is_through then
    break
  end
  finished = finished + 1
  after_time, after_arrival = '-inf', ''
end

local first_ticket = up.lend(lease, hold, entries)
up.close()
return up.reply_with_events(entries, 0, first_ticket, finished, after_time, after_arrival)
