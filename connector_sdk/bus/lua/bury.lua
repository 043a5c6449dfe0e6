-- Add a dead letter; for a group also finish its entry, in the same step.
--
-- KEYS[4]   <tag>:dead:<topic>
-- KEYS[5]   <tag>:buried
-- KEYS[6..] for a group: the stream that has the entry, and the keys where members keep its due time (ZSET) and notes (HASH)
-- ARGV[1]   topic
-- ARGV[2]   position
-- ARGV[3]   body
-- ARGV[4]   evidence
-- ARGV[5]   how many letters of a topic are kept
-- ARGV[6]   how long (ms)
-- ARGV[7..] for a group: its name, the id of the entry, 1 if the stream has nothing but what was redriven
--
-- Returns   the id of the letter. Called a second time for the same entry it returns the first one's.

local dead, group, id = KEYS[4], ARGV[7], ARGV[8]
if group then
  local finished = call('XACK', KEYS[6], group, id)
  call('ZREM', KEYS[7], id)
  call('HDEL', KEYS[8], id)
  if ARGV[9] == '1' then
    call('XDEL', KEYS[6], id)
  end
  if finished == 0 then
    for _, letter in ipairs(call('XREVRANGE', dead, '+', '-', 'COUNT', 20)) do
      local fields = facts_of(letter[2])
      if fields.g == group and fields.p == ARGV[2] then
        return letter[1]
      end
    end
  end
end
local fields = { 'p', ARGV[2], 'b', ARGV[3], 'e', ARGV[4] }
if group then
  fields[7], fields[8] = 'g', group
end
local letter = call('XADD', dead, '*', unpack(fields))
call('XTRIM', dead, 'MAXLEN', ARGV[5])
call('XTRIM', dead, 'MINID', whole(math.max(0, now - ARGV[6])))
call('PEXPIRE', dead, ARGV[6])
call('ZADD', KEYS[5], whole(now), ARGV[1])
call('ZREMRANGEBYSCORE', KEYS[5], '-inf', whole(now - ARGV[6]))
call('PEXPIRE', KEYS[5], ARGV[6])
return letter
