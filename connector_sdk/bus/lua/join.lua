-- Make what a member of a group needs, if it is not there: the topic, and the stream for what is redriven.
--
-- KEYS[4]   the stream of the topic
-- KEYS[5]   the stream of what is redriven for the group
-- ARGV[1]   topic
-- ARGV[2]   group
-- ARGV[3]   how long both live from now, at least (ms)
-- ARGV[4]   1 if the storage had lost the topic, and a member has made its stream anew; else 0

begin(ARGV[1], KEYS[4], tonumber(ARGV[3]))
if ARGV[4] == '1' then
  local first = call('XRANGE', KEYS[4], '-', '+', 'COUNT', 1)[1]
  call('HSET', state_key, 'born:' .. ARGV[1], before(first and parts(first[1]) or now))
  announce(ARGV[1], tonumber(ARGV[3]))
end
if call('EXISTS', KEYS[5]) == 0 then
  call('XGROUP', 'CREATE', KEYS[5], ARGV[2], '0', 'MKSTREAM')
end
for index = 4, 5 do
  keep(KEYS[index], tonumber(ARGV[3]))
end
keep_catalogue(tonumber(ARGV[3]))
return 1
