-- Store where to resume, unless somebody with a higher token has.
-- KEYS[1]  a hash: stream, id, token
-- ARGV[1]  the stream
-- ARGV[2]  the event id
-- ARGV[3]  the fencing token, 0 for a client without a leader: it is accepted and leaves the token that is there
-- ARGV[4]  milliseconds after which it is forgotten, 0 for never
-- Returns {1, token} when stored, {0, the higher token} when refused.
local key, token = KEYS[1], ARGV[3]
local known = redis.call('HGET', key, 'token') or '0'
if token == '0' then
  token = known
elseif tonumber(token) < tonumber(known) then
  return {0, known}
end
redis.call('HSET', key, 'stream', ARGV[1], 'id', ARGV[2], 'token', token)
if ARGV[4] == '0' then
  redis.call('PERSIST', key)
else
  redis.call('PEXPIRE', key, ARGV[4])
end
return {1, token}
