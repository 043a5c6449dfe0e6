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
local runs, entries, left, bytes = {}, {}, limit, 0

-- The first events of a run, at most one more than will be taken: that is where the run then stands. Also whether these
-- are all.
local function load(run)
  local members, step = {}, math.min(left, run.state.size, 64) + 1
  while #members <= left and bytes < most_bytes do
    local part = call('ZRANGE', run.key, #members, #members + math.min(step, left + 1 - #members) - 1)
    for _, member in ipairs(part) do
      members[#members + 1] = member
      bytes = bytes + #member
    end
    if #part < math.min(step, left + 1 - #members + #part) then
      return members, true
    end
    step = math.max(1, math.floor(most_bytes / 8 * #members / math.max(1, bytes)))
  end
  if #members == 1 then
    members[2] = call('ZRANGE', run.key, 1, 1)[1] -- one is to be taken, however large
    return members, members[2] == nil
  end
  return members, false
end

for _, run in ipairs(up.runs_of(call('ZRANGE', heads_key, 0, limit - 1))) do
  if left == 0 or bytes >= most_bytes then
    break
  end
  local members, are_all = load(run)
  run.taken = math.min(left, are_all and #members or #members - 1)
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
