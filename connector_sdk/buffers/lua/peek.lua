-- Show waiting events of some sessions, the newest first, and leave them.
--
-- ARGV[5]    most events of a session, the newest; -1 for all
-- ARGV[6]   only events of this time in seconds or newer; "-inf" for all
-- ARGV[7]   how many sessions to skip, counted from the one written last
-- ARGV[8]   how many events of the next session to skip, counted from the newest
-- ARGV[9]   most events to show in this call
--
-- Returns    the head of every reply, then: 1 if housekeeping comes first and this must be called again, else 0; what to
--            give as ARGV[7] and ARGV[8] in the next call, or -1 and 0 after the last session; then the member of each
--            event.

local up = upkeep()
up.open_to_move()
if not up.keep_house() then
  up.close()
  return reply_with(1, tonumber(ARGV[7]), tonumber(ARGV[8]))
end
up.mend_index()
up.close()

local most, oldest, page = tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[9])
local session, skip = tonumber(ARGV[7]), tonumber(ARGV[8])
local entries, shown, looked, bytes = {}, 0, 0, 0
while shown < page and looked < page and bytes < most_bytes do
  local label = call('ZREVRANGE', touched_key, session, session)[1]
  if not label then
    return up.reply_with_events(entries, 0, -1, 0)
  end
  looked = looked + 1
  local step = math.min(page - shown, 64)
  if most >= 0 then
    step = math.min(step, most - skip)
  end
  local events = {}
  if step > 0 then
    events = call('ZREVRANGEBYSCORE', tag .. ':' .. label, '+inf', oldest, 'LIMIT', skip, step)
  end
  for _, member in ipairs(events) do
    entries[#entries + 1] = label
    entries[#entries + 1] = member
    shown = shown + 1
    bytes = bytes + #member
  end
  if #events == step and step > 0 then
    skip = skip + step
  else
    session, skip = session + 1, 0
  end
end
return up.reply_with_events(entries, 0, session, skip)
