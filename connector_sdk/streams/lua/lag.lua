-- Count what a stream has after an entry, a part at a time.
--
-- KEYS[1]    stream
-- ARGV[1]    id after which to count
-- ARGV[2]    most entries to count now
--
-- Returns    how many there are; the first id, or ""; the last id counted, or ""; the server's time in ms.

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local found = redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], '+', 'COUNT', ARGV[2])
if #found == 0 then
  return { 0, '', '', now }
end
return { #found, found[1][1], found[#found][1], now }
