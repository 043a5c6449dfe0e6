-- Take what retention took from a group before it was given it: each loss is told once.
--
-- ARGV[1..]  fields of <tag>:state
--
-- Returns    how many entries, for each field.

local counts = {}
for index, field in ipairs(ARGV) do
  counts[index] = tonumber(call('HGET', state_key, field) or 0)
  if counts[index] > 0 then
    call('HDEL', state_key, field)
  end
end
return counts
