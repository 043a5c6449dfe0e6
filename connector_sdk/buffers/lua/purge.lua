-- Discard dead letters for good.
--
-- ARGV[5]    "all" or "some"
-- ARGV[6..] if some: their arrivals, 7 bytes each
--
-- Returns    the head of every reply, then: how many were discarded; 1 if there are more and this must be called again, else 0.

local up = upkeep()
up.open_to_move()
local letters = dead_letters(up)
local chosen = {}
if ARGV[5] == 'all' then
  chosen = call('ZRANGE', letters.dead_key, 0, budget - 1)
else
  for index = 6, #ARGV do
    if call('ZSCORE', letters.dead_key, ARGV[index]) then
      chosen[#chosen + 1] = ARGV[index]
    end
  end
end
local before = call('ZCARD', letters.dead_key)
letters.discard(letters.dead_key, chosen)
local left = call('ZCARD', letters.dead_key)
up.close()
return reply_with(before - left, ARGV[5] == 'all' and left > 0 and 1 or 0)
