-- Store entries in this order, all or none; topics are made as needed.
--
-- KEYS[4..]  the stream of each topic
-- ARGV[1]    how many topics; then for each its name and how long a new stream of it lives (ms)
-- ARGV[..]   then of each entry: the number of its topic (1 is the first), the body
--
-- Returns    the id of each entry.

local topics, ids = tonumber(ARGV[1]), {}
for topic = 1, topics do
  begin(ARGV[2 * topic], KEYS[3 + topic], tonumber(ARGV[2 * topic + 1]))
end
for index = 2 * topics + 2, #ARGV, 2 do
  ids[#ids + 1] = call('XADD', KEYS[3 + tonumber(ARGV[index])], '*', 'b', ARGV[index + 1])
end
return ids
