-- Let a dead letter be delivered again: to its group alone, or, without one, as a new entry of its topic.
--
-- KEYS[4]   <tag>:dead:<topic>
-- KEYS[5]   the stream of the topic
-- KEYS[6]   <tag>:again: (what follows is derived: the group is in the letter)
-- ARGV[1]   topic
-- ARGV[2]   id of the letter
-- ARGV[3]   how long a new stream of the topic lives (ms)
-- ARGV[4]   how long what was redriven waits for its group (ms)
--
-- Returns   1, or 0 when there is no such letter.

local dead, topic, id = KEYS[4], ARGV[1], ARGV[2]
local letter = call('XRANGE', dead, id, id)[1]
if not letter then
  return 0
end
local fields = facts_of(letter[2])
if fields.g then
  local again = KEYS[6] .. #fields.g .. ':' .. fields.g .. ':' .. topic
  local made = redis.pcall('XGROUP', 'CREATE', again, fields.g, '0', 'MKSTREAM')
  if made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then
    return made
  end
  call('XADD', again, '*', 'b', fields.b, 'p', fields.p, 'e', fields.e)
  keep(again, tonumber(ARGV[4]))
else
  begin(topic, KEYS[5], tonumber(ARGV[3]))
  call('XADD', KEYS[5], '*', 'b', fields.b)
end
call('XDEL', dead, id)
return 1
