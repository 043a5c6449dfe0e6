-- Show one dead letter.
--
-- ARGV[5]    most dead letters of the shard
-- ARGV[6]   how long a dead letter is kept, in milliseconds
-- ARGV[7]   its arrival, 7 bytes
--
-- Returns    the head of every reply, then: its score and the packed letter; nothing when there is no such letter.

local up = upkeep()
up.open_to_move()
local letters = dead_letters(up)
letters.trim(tonumber(ARGV[5]), tonumber(ARGV[6]))
up.close()
local score = call('ZSCORE', letters.dead_key, ARGV[7])
local letter = score and call('HGET', letters.letters_key, ARGV[7])
if not letter then
  return reply_with()
end
return reply_with(score, letter)
