-- Tell what is known of a topic, all at one moment.
--
-- KEYS[4]   its stream
-- KEYS[5]   <tag>:dead:<topic>
-- KEYS[6]   <tag>:again:
-- ARGV[1]   topic
-- ARGV[2]   how many entries to count at most where the server does not know the lag of a group
--
-- Returns   nil when there is no such topic; else: now (ms), entries, id of the first and of the last entry ("" for none), dead
--           letters; then for each group: name, living members, pending, lag (-1 when nobody can tell), id that was
--           delivered last, id of the oldest pending entry ("" for none).

local stream = KEYS[4]
if call('EXISTS', stream) == 0 then
  return nil
end
local about = facts_of(call('XINFO', 'STREAM', stream))
local first, last = about['first-entry'], about['last-entry']
local answer = {
  now, about.length, first and first[1] or '', last and last[1] or '', call('XLEN', KEYS[5]),
}

local function lag_of(group)
  local delivered = group['last-delivered-id']
  if not last or not is_before(delivered, last[1]) then
    return 0
  end
  if tonumber(group.lag) then
    return group.lag
  end
  if is_before(delivered, first[1]) then
    return about.length
  end
  local most = tonumber(ARGV[2])
  local count = #call('XRANGE', stream, '(' .. delivered, '+', 'COUNT', most)
  return count < most and count or -1
end

for _, reply in ipairs(call('XINFO', 'GROUPS', stream)) do
  local group = facts_of(reply)
  local name = group.name
  local again = KEYS[6] .. #name .. ':' .. name .. ':' .. ARGV[1]
  local alive = call('ZCOUNT', stream .. ':group:' .. name .. ':alive', '(' .. whole(now), '+inf')
  local oldest = group.pending > 0 and call('XPENDING', stream, name)[2] or ''
  answer[#answer + 1] = {
    name, alive, group.pending + call('XLEN', again), lag_of(group), group['last-delivered-id'], oldest,
  }
end
return answer
