-- Move events of the shard to a lease, session by session: for those who will take everything and sort it themselves.
--
-- ARGV[5]    lease
-- ARGV[6]   how long it holds from now, in milliseconds
-- ARGV[7]   most events to take, 1 or more
--
-- Returns    the head of every reply, then: 1 if housekeeping comes first and this must be called again, else 0; ticket
--            of the first event; then the member of each event, the oldest of a session first.

local up = upkeep()
up.open_to_move()
if not up.keep_house() then
  up.close()
  return reply_with(1, 0)
end
up.mend_index()

local lease, hold, limit = ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
local runs, entries, left = {}, {}, limit
for _, run in ipairs(up.runs_of(call('ZRANGE', heads_key, 0, limit - 1))) do
  if left == 0 then
    break
  end
  -- One more than will be taken: that is where the run then stands.
  local members = call('ZRANGE', run.key, 0, math.min(left, run.state.size))
  if #members > run.state.size then
    members = call('ZRANGE', run.key, 0, left) -- somebody put more there than we knew
  end
  run.taken = math.min(left, #members)
  if #members > run.taken then
    run.time, run.arrival = up.time_of(members[run.taken + 1]), up.arrival_of(members[run.taken + 1])
  else
    run.is_over, run.size = true, #members
  end
  local label = run.label
  for index = 1, run.taken do
    entries[#entries + 1] = label
    entries[#entries + 1] = members[index]
  end
  left = left - run.taken
  runs[#runs + 1] = run
end
up.remove_taken(runs)

local first_ticket = up.lend(lease, hold, entries)
up.close()
return up.reply_with_events(entries, 0, first_ticket)
