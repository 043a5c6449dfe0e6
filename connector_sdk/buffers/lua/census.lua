-- Count what is here, after the housekeeping that is due.
--
-- ARGV[5]    most dead letters of the shard
-- ARGV[6]   how long a dead letter is kept, in milliseconds
--
-- Returns    the head of every reply, then: 1 if there is more housekeeping to do and this must be called again, else 0;
--            received, delivered, skewed; sessions, leases, quarantined, dead letters; the time since the event that waits
--            at the head arrived (or was redriven), in milliseconds, -1 without one; then pairs of reason and number, what
--            was ever dropped.

local up = upkeep()
up.open_to_move()
local is_done = up.keep_house()
up.mend_index()
local letters = dead_letters(up)
letters.trim(tonumber(ARGV[5]), tonumber(ARGV[6]))
up.close()
if call('EXISTS', drops_key) == 0 then
  -- The server may have evicted it, and why these events have gone is not known any more.
  drop('lost', account.received - account.delivered - account.buffered - account.leased)
  finish()
end
local oldest = -1
local head = call('ZRANGE', heads_key, 0, 0)[1]
if head then
  local since = call('ZSCORE', letters.redriven_key, string.sub(head, 1, 7)) or struct.unpack('>I7', head)
  oldest = math.max(0, now_ms - math.floor(since / 1000))
end
local reply = reply_with(
  is_done and 0 or 1,
  account.received,
  account.delivered,
  account.skewed,
  call('ZCARD', touched_key),
  call('ZCARD', up.leases_key),
  call('LLEN', tag .. ':quarantine') / 2,
  call('ZCARD', letters.dead_key),
  oldest
)
for _, word in ipairs(call('HGETALL', drops_key)) do
  reply[#reply + 1] = word
end
return reply
