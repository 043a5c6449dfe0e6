-- Let dead letters wait again, as if they had just come.
--
-- ARGV[5]    most dead letters of the shard; the evidence of as many that were redriven is kept, too
-- ARGV[6]   how long a dead letter is kept, and its evidence after this, in milliseconds
-- ARGV[7..] arrivals, 7 bytes each
--
-- Returns    the head of every reply, then: the arrivals of those that wait again, 7 bytes each.
--
-- They have the time of this call as their own, and keep their arrival. Those whose session somebody else has under another
-- type of key stay dead.

local up = upkeep()
up.open_to_move()
local letters = dead_letters(up)
letters.trim(tonumber(ARGV[5]), tonumber(ARGV[6]))
local groups, labels, redriven, names = {}, {}, {}, {}
for index = 7, #ARGV do
  local arrival = ARGV[index]
  local letter = call('ZSCORE', letters.dead_key, arrival) and call('HGET', letters.letters_key, arrival)
  local label, member
  if letter then
    label, member = letters.open(letter)
  end
  if label and not groups[label] then
    local size = redis.pcall('ZCARD', tag .. ':' .. label)
    if type(size) == 'number' then
      groups[label] = { newest = -math.huge }
      labels[#labels + 1] = label
    end
  end
  local group = label and groups[label]
  if group then
    local time = up.time_of(member)
    group.newest = math.max(group.newest, time)
    if string.find(member, '^[asu]', 16) then
      time = now
      member = string.sub(member, 1, 7) .. struct.pack('>d', now) .. string.sub(member, 16)
    end
    group[#group + 1] = exact(time)
    group[#group + 1] = member
    names[#names + 1] = up.known_as(member)
    redriven[#redriven + 1] = arrival
    letters.rise(arrival, letter)
  end
end
for _, label in ipairs(labels) do
  -- The times of the call are not those of the events: were they, what waits in a replay of old events would be too old.
  up.put_back(label, groups[label], groups[label].newest)
end
account.received = account.received + #redriven
account.buffered = account.buffered + #redriven
if #redriven > 0 then
  letters.trim(tonumber(ARGV[5]), tonumber(ARGV[6]))
  letters.keep(tonumber(ARGV[6]))
  up.know(names)
  account.fresh = 0 -- some of the keys may be new, and have no expiry yet
end
up.close()
local reply = reply_with()
for _, arrival in ipairs(redriven) do
  reply[#reply + 1] = arrival
end
return reply
