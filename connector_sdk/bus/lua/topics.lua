-- Tell which topics there are.
--
-- KEYS[4]   <tag>:topic: (the stream of a topic is this and its name)
--
-- Returns   the id of the newest entry of the catalogue, "0-0" for none; then the topics.

local found = { '0-0' }
if call('EXISTS', catalogue_key) == 1 then
  found[1] = facts_of(call('XINFO', 'STREAM', catalogue_key))['last-generated-id']
end
for _, topic in ipairs(call('ZRANGE', topics_key, 0, -1)) do
  if call('EXISTS', KEYS[4] .. topic) == 1 then
    found[#found + 1] = topic
  end
end
return found
