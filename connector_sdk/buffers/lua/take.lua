-- Move the oldest events of the shard to a lease.
--
-- ARGV[5]    lease
-- ARGV[6]   how long it holds from now, in milliseconds
-- ARGV[7]   most events to take, 1 or more
-- ARGV[8]   "" or what the leases of this holder begin with: then nothing is taken while others have events on lease
--
-- Returns    the head of every reply, then: 1 if housekeeping comes first and this must be called again, else 0; ticket
--            of the first event; then the member of each event, oldest first.
--
-- Oldest first over all sessions, ties in order of arrival. The cost grows with the events taken and the logarithm of the
-- sessions, not with the events that wait.

local up = upkeep()
up.open_to_move()
if not up.keep_house() then
  up.close()
  return reply_with(1, 0)
end
if ARGV[8] ~= '' and up.is_held_by_others(ARGV[8]) then
  up.close()
  return reply_with(0, 0)
end
up.mend_index()

local lease, hold, limit = ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])

-- Runs, one a session, as a heap: the one with the oldest event first. A page of n events can only have events of the n
-- sessions whose heads are the oldest. They come sorted, so they are a heap; what each has is read when its turn comes.
local heap = up.runs_of(call('ZRANGE', heads_key, 0, limit - 1))
for _, run in ipairs(heap) do
  run.order = up.order_of(run.arrival)
end
local share = math.ceil(limit / math.max(1, #heap)) + 1

local function is_before(one, other)
  if one.time ~= other.time then
    return one.time < other.time
  end
  return one.order < other.order
end

local function sink()
  local run, size, at = heap[1], #heap, 1
  while true do
    local child = at * 2
    if child > size then
      break
    end
    if child < size and is_before(heap[child + 1], heap[child]) then
      child = child + 1
    end
    if not is_before(heap[child], run) then
      break
    end
    heap[at] = heap[child]
    at = child
  end
  heap[at] = run
end

-- Let a run stand at its next event; false when it has none, and then its size is known.
local function advance(run)
  if not run.chunk or run.at > #run.chunk then
    if run.size then
      return false
    end
    -- One more than there should be, to see that there is none.
    local step = math.min(run.share or share, math.max(1, run.state.size - run.loaded + 1), 16)
    if run.member then
      step = math.min(run.share, math.max(1, math.floor(most_bytes / 8 / #run.member)))
    end
    run.chunk = call('ZRANGE', run.key, run.loaded, run.loaded + step - 1)
    run.loaded = run.loaded + #run.chunk
    if #run.chunk < step then
      run.size = run.loaded
    end
    run.share = math.min((run.share or share) * 2, 256)
    run.at = 1
    if #run.chunk == 0 then
      return false
    end
  end
  run.member = run.chunk[run.at]
  run.at = run.at + 1
  run.time, run.arrival = up.time_of(run.member), up.arrival_of(run.member)
  run.order = up.order_of(run.arrival)
  return true
end

local runs, entries, taken, bytes = {}, {}, 0, 0
while taken < limit and bytes < most_bytes and #heap > 0 do
  local run = heap[1]
  if run.member then
    entries[#entries + 1] = run.label
    entries[#entries + 1] = run.member
    run.taken = run.taken + 1
    taken = taken + 1
    bytes = bytes + #run.member
  else
    runs[#runs + 1] = run
  end
  if not advance(run) then
    run.is_over = true
    heap[1] = heap[#heap]
    heap[#heap] = nil
  end
  if #heap > 1 then
    sink()
  end
end

up.remove_taken(runs)
local first_ticket = up.lend(lease, hold, entries)
up.close()
return up.reply_with_events(entries, 0, first_ticket)
