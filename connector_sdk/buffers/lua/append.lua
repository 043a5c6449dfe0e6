-- Store a batch of events: add, trim, index, account and expiry in one atomic step.
--
-- ARGV[5]    writer: names the caller's numbering of batches
-- ARGV[6]    number of the batch; a number that this writer used before stores nothing
-- ARGV[7]    most events of a session, 0 for no bound
-- ARGV[8]    most sessions of the shard, 0 for no bound
-- ARGV[9]    how many groups follow; a group has the events of one session:
--              label, how many events, then for each: time in seconds, entry in ids or "", member without arrival and time
--
-- Returns    the head of every reply, then: events stored, duplicates, skewed.
--
-- An event older than the newest of its session (but never measured from later than the server's clock) by more than
-- the window is dropped as expired, be it old or new; beyond the most events the oldest go (overflow), beyond the most
-- sessions the ones idle for longest (evicted). Out of memory the first write is refused, and nothing was done. Only when
-- the batch is in is its number written, so that one that came to nothing can come again.
--
-- The state has for each writer the number of its latest batch, and then, if any, the lower numbers that have not come
-- (yet), each between two spaces.

local writer, number = 'writer:' .. ARGV[5], tonumber(ARGV[6])
local most_events, most_sessions = tonumber(ARGV[7]), tonumber(ARGV[8])
local up -- most batches need none of it

local labels, places = { 'account', writer }, {} -- of the groups, and where each begins in ARGV
local at = 10
for _ = 1, tonumber(ARGV[9]) do
  labels[#labels + 1] = ARGV[at]
  places[#places + 1] = at + 1
  at = at + 2 + 3 * ARGV[at + 1]
end
-- While the slot moves from one node of a cluster to another, some keys are here and some are there, and a script that
-- met one that is not here would end half-way. To ask for two keys that nobody has ends it now: the node that gives the
-- slot away refuses one that is missing, the node that gets it refuses two.
call('EXISTS', tag .. ':nothing', tag .. ':nobody')
local found = call('HMGET', state_key, unpack(labels, 1, math.min(#labels, 2000)))
for first = 2001, #labels, 2000 do
  for _, state in ipairs(call('HMGET', state_key, unpack(labels, first, math.min(first + 1999, #labels)))) do
    found[#found + 1] = state
  end
end

-- What to write for this writer when its numbers do not come one by one; nil when this one came before.
local function enter(numbering)
  numbering = numbering or call('HGET', tag .. ':writers', ARGV[5]) or '0'
  local latest, missing = nil, {}
  for word in string.gmatch(numbering, '%d+') do
    if not latest then
      latest = tonumber(word)
    elseif tonumber(word) ~= number and tonumber(word) > number - 10000 then
      missing[#missing + 1] = word
    end
  end
  if number > latest then
    for skipped = math.max(latest + 1, number - 1000), number - 1 do
      missing[#missing + 1] = string.format('%.0f', skipped)
    end
    latest = number
  elseif not string.find(numbering, ' ' .. ARGV[6] .. ' ', 1, true) then
    return nil
  end
  if #missing == 0 then
    return string.format('%.0f', latest)
  end
  return string.format('%.0f ', latest) .. table.concat(missing, ' ', math.max(1, #missing - 1999)) .. ' '
end

local numbering = ARGV[6]
if tonumber(found[2]) ~= number - 1 then
  numbering = enter(found[2])
end
if found[1] then
  open_account(found[1])
end
if not numbering then
  return found[1] and reply_with(0, 0, 0) or { '', 0, 0, 0, 0, 0, 0 }
end

if not found[1] or now_ms - account.kept >= math.min(100, often) then
  call('HSET', state_key, 'begun', number) -- refused out of memory, before anything is done
  call('PEXPIRE', state_key, lifetime)
  up = upkeep()
  if not found[1] then
    up.new_account()
  end
  up.keep_house()
  up.forget_writers()
  found = call('HMGET', state_key, unpack(labels, 1, math.min(#labels, 2000)))
  for first = 2001, #labels, 2000 do
    for _, state in ipairs(call('HMGET', state_key, unpack(labels, first, math.min(first + 1999, #labels)))) do
      found[#found + 1] = state
    end
  end
end

if ARGV[2] ~= '' and ARGV[2] ~= account.epoch then
  up = up or upkeep()
  up.note_loss()
end

-- Drop what left the window and what is too many; returns whether anything of the session is left.
local function trim(label, expected, newest, old_arrival, touched_at)
  up = up or upkeep()
  local key = tag .. ':' .. label
  local size = call('ZCARD', key)
  if size < expected then
    drop('lost', expected - size)
  else
    account.received = account.received + size - expected
  end
  local limit = '(' .. exact(math.min(newest, now) - window / 1000)
  if account.ids == 1 then
    up.let_go_members(call('ZRANGEBYSCORE', key, '-inf', limit))
  end
  local gone = call('ZREMRANGEBYSCORE', key, '-inf', limit)
  drop('expired', gone)
  local excess = most_events > 0 and math.max(0, size - gone - most_events) or 0
  if excess > 0 then
    if account.ids == 1 then
      up.let_go_members(call('ZRANGE', key, 0, excess - 1))
    end
    call('ZREMRANGEBYRANK', key, 0, excess - 1)
    drop('overflow', excess)
  end
  account.buffered = account.buffered + size - expected - gone - excess
  return up.renew_session(label, newest, old_arrival, touched_at)
end

-- Add to a session; returns the refusal when that cannot be done.
local function add_to(key, added)
  for first = 1, #added, 2000 do
    local reply = redis.pcall('ZADD', key, unpack(added, first, math.min(first + 1999, #added)))
    if type(reply) == 'table' and reply.err then
      return reply
    end
  end
end

local stored, duplicates, skewed, received, has_ids = 0, 0, 0, 0, false
local seq = math.max(now_us, account.seq)
local new_states, new_heads, old_heads, touched = {}, {}, {}, {}
local horizon = now + window / 1000 -- what is stamped later is skewed
if account.buffered == 0 then
  account.fresh = 0 -- some of the keys may be new, and have no expiry yet
end

for position, place in ipairs(places) do
  local label = labels[position + 2]
  local key = tag .. ':' .. label
  local added, newest, least, least_arrival = {}, nil, nil, nil
  for index = place + 1, place + 3 * ARGV[place], 3 do
    local score, name = ARGV[index], ARGV[index + 1]
    received = received + 1
    if name ~= '' and call('ZADD', ids_key, 'NX', -now_ms, name) == 0 then
      duplicates = duplicates + 1
    else
      has_ids = has_ids or name ~= ''
      if by_event == 0 then
        score = exact(now)
      end
      local time, arrival = tonumber(score), struct.pack('>I7', seq)
      seq = seq + 1
      if time > horizon then
        skewed = skewed + 1
      end
      if not newest or time > newest then
        newest = time
      end
      if not least or time < least then
        least, least_arrival = time, arrival
      end
      added[#added + 1] = score
      added[#added + 1] = arrival .. struct.pack('>d', time) .. ARGV[index + 2]
    end
  end
  local refusal = newest and add_to(key, added)
  if refusal then
    if stored == 0 and not has_ids and not string.find(refusal.err, 'WRONGTYPE', 1, true) then
      return redis.error_reply(string.match(refusal.err, '%-(%u.*)$') or refusal.err) -- nothing was done
    end
    -- Somebody else has something of another kind under this name: the events of this session cannot be kept.
    drop('rejected', #added / 2)
    for index = place + 2, place + 3 * ARGV[place], 3 do
      if ARGV[index] ~= '' then
        call('ZREM', ids_key, ARGV[index])
      end
    end
  elseif newest then
    local size, is_due, touched_at, oldest, arrival = #added / 2, true, now_ms, least, least_arrival
    local old_arrival = nil
    stored = stored + size
    if found[position + 2] then
      local old_size, old_newest, old_time, old_touched
      old_size, old_newest, old_time, old_arrival, old_touched = struct.unpack('>dddc7d', found[position + 2])
      size, newest = size + old_size, math.max(newest, old_newest)
      is_due = now_ms - old_touched >= often
      touched_at = is_due and now_ms or old_touched
      if old_time <= least then
        oldest, arrival = old_time, old_arrival
      end
    end
    if is_due then
      call('PEXPIRE', key, lifetime)
    end
    local is_left = true
    if oldest < math.min(newest, now) - window / 1000 or (most_events > 0 and size > most_events) then
      account.ids = has_ids and 1 or account.ids
      is_left = trim(label, size, newest, old_arrival, touched_at)
    else
      if arrival ~= old_arrival then
        if old_arrival then
          old_heads[#old_heads + 1] = old_arrival .. label
        end
        new_heads[#new_heads + 1] = exact(oldest)
        new_heads[#new_heads + 1] = arrival .. label
      end
      new_states[#new_states + 1] = label
      new_states[#new_states + 1] = pack_state(size, newest, oldest, arrival, touched_at)
    end
    if is_due and is_left then
      touched[#touched + 1] = now_ms
      touched[#touched + 1] = label
    end
  end
end

if #new_heads > 0 then
  call_with(new_heads, 'ZADD', heads_key)
end
if #old_heads > 0 then
  call_with(old_heads, 'ZREM', heads_key) -- after the others, for an empty key would lose its expiry
end
if #touched > 0 then
  call_with(touched, 'ZADD', touched_key)
end
if has_ids then
  account.ids = 1
  keep_ids()
end
account.seq = seq
account.received = account.received + received
account.buffered = account.buffered + stored
account.skewed = account.skewed + skewed
drop('duplicate', duplicates)
if most_sessions > 0 then
  call_with(new_states, 'HSET', state_key)
  new_states = {}
  local excess = call('ZCARD', touched_key) - most_sessions
  if excess > 0 then
    up = up or upkeep()
    for _, label in ipairs(call('ZRANGE', touched_key, 0, excess - 1)) do
      up.give_up(label, 'evicted', false)
    end
  end
end
new_states[#new_states + 1] = writer
new_states[#new_states + 1] = numbering
new_states[#new_states + 1] = 'account'
new_states[#new_states + 1] = close_account(true)
call_with(new_states, 'HSET', state_key)
if up then
  call('HDEL', state_key, 'begun')
end
finish()
return reply_with(stored, duplicates, skewed)
