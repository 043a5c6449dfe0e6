-- Tell what became of topics, for readers who may have missed something.
--
-- KEYS[4..]  the stream of each topic
-- ARGV[1..]  the name of each
--
-- Returns    when this storage began (ms, "" if it has not), the id of the newest entry of the catalogue, "0-0" for none; then of
--            each topic: the id of the newest entry that its stream had ("" without a stream), the id below its first one,
--            the id of the last one that retention took (each "" for none).

local answer = { call('HGET', state_key, 'since') or '', '0-0' }
if call('EXISTS', catalogue_key) == 1 then
  answer[2] = facts_of(call('XINFO', 'STREAM', catalogue_key))['last-generated-id']
end
for index, topic in ipairs(ARGV) do
  local last, stream = '', KEYS[3 + index]
  if call('EXISTS', stream) == 1 then
    last = facts_of(call('XINFO', 'STREAM', stream))['last-generated-id']
  end
  answer[#answer + 1] = last
  answer[#answer + 1] = call('HGET', state_key, 'born:' .. topic) or ''
  answer[#answer + 1] = call('HGET', state_key, 'trimmed:' .. topic) or ''
end
return answer
