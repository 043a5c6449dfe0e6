-- Stand for election.
-- KEYS[1]  the lease: who leads, "" for nobody; expires with the leadership
-- KEYS[2]  the fence: the token given out last
-- ARGV[1]  the candidate, unique for each candidacy
-- ARGV[2]  ttl: milliseconds that a lease lasts
-- ARGV[3]  the highest token that the candidate knows of
-- ARGV[4]  milliseconds after which the fence of an unused leadership is forgotten
-- Returns {token, ""} when the candidate leads (also when an earlier answer got lost), else {0, who leads, milliseconds left}.
local lease, fence = KEYS[1], KEYS[2]
local candidate, ttl = ARGV[1], ARGV[2]
local holder = redis.call('GET', lease)
local last = redis.call('GET', fence)
if holder == candidate and last then
  redis.call('PEXPIRE', lease, ttl)
  return {last, ''}
end
if holder then
  return {'0', holder, redis.call('PTTL', lease)}
end
if not last then
  -- First of all elections, or the data is lost: then somebody may still believe to lead, for a ttl at most. Nobody is
  -- elected before that is over.
  redis.call('SET', fence, '0', 'PX', ARGV[4])
  redis.call('SET', lease, '', 'PX', ttl)
  return {'0', '', tonumber(ttl)}
end
-- By the clock, so that tokens grow although the fence was lost; above the last, so that they do when the clock goes back.
local now = redis.call('TIME')
local token = math.max(tonumber(now[1]) * 1000000 + tonumber(now[2]), tonumber(last) + 1, tonumber(ARGV[3]) + 1)
local text = string.format('%.0f', token)
redis.call('SET', fence, text, 'PX', ARGV[4])
redis.call('SET', lease, candidate, 'PX', ttl)
return {text, ''}
