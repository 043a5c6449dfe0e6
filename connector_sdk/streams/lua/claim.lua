-- Say that a consumer lives, and take over for it what is due again and what dead consumers have. Atomic.
--
-- KEYS       for each stream four, all of one slot: the stream; alive (ZSET consumer -> deadline in ms); due (ZSET entry id ->
--            time in ms); notes (HASH entry id -> what its next consumer is to know)
-- ARGV[1]    group
-- ARGV[2]    consumer
-- ARGV[3]    hold in ms: how long it counts as alive from now
-- ARGV[4]    ms after which side keys expire that nobody uses
-- ARGV[5]    most entries to take
-- ARGV[6]    whose entries to take, beside those that are due: "none"; "dead": of consumers whose deadline passed, and of those
--            without a deadline that are idle for longer than hold; or ms, 0 or more: of all that are silent for so long
--
-- Returns    ms until the next entry is due (0: now, -1: none waits); 1 when there may be more to take now, else 0; then for each
--            stream that has something to tell: its number from 1, 1 when the stream or the group is not there (else 0), entries that
--            were trimmed, entries of others that were looked at, entries of others that were taken, the entries taken: id, fields,
--            attempt, notes.
--
-- Entries that wait belong to the consumer "-", which never lives. The delivery counter of a taken entry grows by one. An entry
-- that the stream has no more is acknowledged. All that a dead consumer has is looked at, page by page; it is deleted once it has
-- nothing left, in the same step, so that no entry can get lost with it. Times are by the clock of the server.

local call = redis.call
local group, me = ARGV[1], ARGV[2]
local hold, life, left = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local silence = tonumber(ARGV[6])
local clock = call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local page_size, most_pages = 500, 20
local next_due, more = -1, 0
local answer = { -1, 0 }

local function fields_of(row)
  local fields = {}
  for at = 1, #row, 2 do
    fields[row[at]] = row[at + 1]
  end
  return fields
end

-- Entries in '-' that are not in due: the key was lost. They are due now.
local function mend_due(stream, due)
  local start = '-'
  for _ = 1, most_pages do
    local page = call('XPENDING', stream, group, start, '+', page_size, '-')
    for _, pending in ipairs(page) do
      if not call('ZSCORE', due, pending[1]) then
        call('ZADD', due, now, pending[1])
      end
    end
    if #page < page_size then
      return
    end
    start = '(' .. page[#page][1]
  end
end

for number = 1, #KEYS / 4 do
  local stream, alive, due, notes = KEYS[4 * number - 3], KEYS[4 * number - 2], KEYS[4 * number - 1], KEYS[4 * number]
  local trimmed, checked, recovered, entries = 0, 0, 0, {}
  local consumers = redis.pcall('XINFO', 'CONSUMERS', stream, group)
  if consumers.err then
    if not (string.find(consumers.err, 'NOGROUP', 1, true) or string.find(consumers.err, 'no such key', 1, true)) then
      return consumers
    end
    answer[#answer + 1] = { number, 1, 0, 0, 0, {} }
    consumers = nil
  end

  local function take(id, count)
    local found = call('XRANGE', stream, id, id)[1]
    call('ZREM', due, id)
    if not found then
      call('XACK', stream, group, id)
      call('HDEL', notes, id)
      trimmed = trimmed + 1
      return false
    end
    call('XCLAIM', stream, group, me, 0, id, 'RETRYCOUNT', count + 1, 'JUSTID')
    entries[#entries + 1] = { id, found[2], count + 1, call('HGET', notes, id) or '' }
    left = left - 1
    return true
  end

  -- Returns whether the consumer has nothing any more.
  local function take_from(name)
    for _ = 1, most_pages do
      local page = left > 0 and call('XPENDING', stream, group, '-', '+', math.min(left, page_size), name) or {}
      for _, pending in ipairs(page) do
        checked = checked + 1
        if take(pending[1], pending[4]) then
          recovered = recovered + 1
        end
      end
      if #page == 0 then
        break
      end
    end
    local is_empty = #call('XPENDING', stream, group, '-', '+', 1, name) == 0
    if not is_empty then
      more = 1
    end
    return is_empty
  end

  if consumers then
    call('ZADD', alive, now + hold, me)
    call('PEXPIRE', alive, hold + life)
    for at, row in ipairs(consumers) do
      consumers[at] = fields_of(row)
      if consumers[at].name == '-' and consumers[at].pending > call('ZCARD', due) then
        mend_due(stream, due)
      end
    end

    local waiting = left > 0 and call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, left) or {}
    for _, id in ipairs(waiting) do
      local pending = call('XPENDING', stream, group, id, id, 1)[1]
      if pending and pending[2] == '-' then
        take(id, pending[4])
      else
        call('ZREM', due, id)
        if not pending then
          call('HDEL', notes, id)
        end
      end
    end

    if ARGV[6] ~= 'none' then
      for _, consumer in ipairs(consumers) do
        local name = consumer.name
        if name ~= me and name ~= '-' then
          local deadline = tonumber(call('ZSCORE', alive, name) or nil)
          local is_dead = deadline and deadline <= now or not deadline and consumer.idle > hold
          local silent = consumer.idle
          if deadline then
            silent = math.min(silent, now - (deadline - hold))
          end
          if (silence and silent >= silence) or (not silence and is_dead) then
            if take_from(name) and is_dead then
              call('XGROUP', 'DELCONSUMER', stream, group, name)
              call('ZREM', alive, name)
            end
          end
        end
      end
    end

    local first = call('ZRANGE', due, 0, 0, 'WITHSCORES')
    if first[1] then
      call('PEXPIRE', due, math.max(0, first[2] - now) + life)
      call('PEXPIRE', notes, math.max(0, first[2] - now) + life)
      local wait = math.max(0, math.ceil(first[2] - now))
      if next_due < 0 or wait < next_due then
        next_due = wait
      end
    end
    if #entries > 0 or trimmed > 0 or checked > 0 then
      answer[#answer + 1] = { number, 0, trimmed, checked, recovered, entries }
    end
  end
end

answer[1], answer[2] = next_due, more
return answer
