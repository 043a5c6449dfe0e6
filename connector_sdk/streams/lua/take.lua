-- Return entries that a consumer has pending already: their reply was lost, or an earlier life of it left them. Atomic.
--
-- KEYS       stream, due, notes; see claim.lua
-- ARGV[1]    group
-- ARGV[2]    consumer
-- ARGV[3]    what to add to the delivery counter of each: 0 or 1
-- ARGV[4]..  entry ids
--
-- Returns    how many of them were trimmed; then for each other that this consumer still has: id, fields, attempt, notes.
--            An entry that the stream has no more is acknowledged.

local call = redis.call
local stream, due, notes = KEYS[1], KEYS[2], KEYS[3]
local answer = { 0 }
for at = 4, #ARGV do
  local id = ARGV[at]
  local pending = call('XPENDING', stream, ARGV[1], id, id, 1, ARGV[2])[1]
  if pending then
    local found = call('XRANGE', stream, id, id)[1]
    if found then
      local count = pending[4] + ARGV[3]
      call('XCLAIM', stream, ARGV[1], ARGV[2], 0, id, 'RETRYCOUNT', count, 'JUSTID')
      answer[#answer + 1] = { id, found[2], count, call('HGET', notes, id) or '' }
    else
      call('XACK', stream, ARGV[1], id)
      call('ZREM', due, id)
      call('HDEL', notes, id)
      answer[1] = answer[1] + 1
    end
  end
end
return answer
