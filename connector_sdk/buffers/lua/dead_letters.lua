-- Show dead letters, those buried first first, and leave them.
--
-- ARGV[5]    most dead letters of the shard
-- ARGV[6]   how long a dead letter is kept, in milliseconds
-- ARGV[7]   after which score to begin, "-inf" for the first
-- ARGV[8]   most dead letters to show in this call, 1 or more
--
-- Returns    the head of every reply, then: the score to go on after, "" after the last one; then score and packed letter of
--            each.

local up = upkeep()
up.open_to_move()
local letters = dead_letters(up)
letters.trim(tonumber(ARGV[5]), tonumber(ARGV[6]))
up.close()

local after, left, bytes = ARGV[7], tonumber(ARGV[8]), 0
local shown = {}
while left > 0 and bytes < most_bytes do
  local step = math.min(left, 100)
  local from = after == '-inf' and after or '(' .. after
  local found = call('ZRANGEBYSCORE', letters.dead_key, from, '+inf', 'WITHSCORES', 'LIMIT', 0, step)
  for index = 1, #found, 2 do
    local letter = call('HGET', letters.letters_key, found[index])
    if letter then -- else the server has evicted it
      shown[#shown + 1] = found[index + 1]
      shown[#shown + 1] = letter
      bytes = bytes + #letter
      left = left - 1
    end
    after = found[index + 1]
    if bytes >= most_bytes then
      break
    end
  end
  if #found < 2 * step then
    if bytes < most_bytes then
      after = ''
    end
    break
  end
end
local reply = reply_with(after)
for _, value in ipairs(shown) do
  reply[#reply + 1] = value
end
return reply
