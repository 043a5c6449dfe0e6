-- What the scripts for dead letters need beyond upkeep.lua: this file is put after it. The keys are told of in shared.lua.
--
-- A packed letter is a row of texts, each with its length in 4 bytes in front: label, member, then the evidence of each death.
-- Of a letter that was redriven label and member are "": the event is elsewhere.

local function dead_letters(up)
  local dead_key, letters_key, redriven_key = tag .. ':dead', tag .. ':letters', tag .. ':redriven'
  local latest -- score of the letter that was buried last

  local function packed(text)
    return struct.pack('>I4', #text) .. text
  end

  -- The label and the member of a letter, and its evidence, packed; nil if there is no event in it.
  local function open(letter)
    local size = struct.unpack('>I4', letter)
    local label = string.sub(letter, 5, 4 + size)
    local length = struct.unpack('>I4', letter, 5 + size)
    local member = string.sub(letter, 9 + size, 8 + size + length)
    return label ~= '' and label or nil, member, string.sub(letter, 9 + size + length)
  end

  -- Microseconds of the server's clock; no two letters have the same, so that they have an order.
  local function next_score()
    if not latest then
      latest = tonumber(call('ZRANGE', dead_key, -1, -1, 'WITHSCORES')[2] or 0)
    end
    latest = math.max(now_us, latest + 1)
    return string.format('%.0f', latest)
  end

  local function bury(label, member, evidence)
    local arrival = up.arrival_of(member)
    local before, earlier = call('HGET', letters_key, arrival), ''
    if before then
      local _
      _, _, earlier = open(before)
    end
    call('HSET', letters_key, arrival, packed(label) .. packed(member) .. earlier .. packed(evidence))
    call('ZADD', dead_key, next_score(), arrival)
    call('ZREM', redriven_key, arrival)
  end

  -- The event of a letter is elsewhere from now on.
  local function rise(arrival, letter)
    local _, _, evidence = open(letter)
    call('HSET', letters_key, arrival, packed('') .. packed('') .. evidence)
    call('ZADD', redriven_key, string.format('%.0f', now_us), arrival)
    call('ZREM', dead_key, arrival)
  end

  local function discard(key, arrivals)
    call_with(arrivals, 'HDEL', letters_key)
    call_with(arrivals, 'ZREM', key)
  end

  -- Make the indexes agree with the letters, should the server have evicted one of the keys.
  local function mend()
    for _, key in ipairs({ dead_key, redriven_key }) do
      for _, arrival in ipairs(call('ZRANGE', key, 0, -1)) do
        if not call('HGET', letters_key, arrival) then
          call('ZREM', key, arrival)
        end
      end
    end
    local longest, all = call('PTTL', letters_key), call('HGETALL', letters_key)
    for index = 1, #all, 2 do
      local arrival, label = all[index], open(all[index + 1])
      local key = label and dead_key or redriven_key
      if not call('ZSCORE', key, arrival) then
        call('ZADD', key, label and next_score() or string.format('%.0f', now_us), arrival)
        call('PEXPIRE', key, longest)
      end
    end
  end

  -- Discard what is older than *age* milliseconds, and what is more than *most*, the oldest first.
  local function trim(most, age)
    if call('HLEN', letters_key) ~= call('ZCARD', dead_key) + call('ZCARD', redriven_key) then
      mend()
    end
    local limit = string.format('%.0f', now_us - age * 1000)
    for _, key in ipairs({ dead_key, redriven_key }) do
      discard(key, call('ZRANGEBYSCORE', key, '-inf', limit, 'LIMIT', 0, budget))
      local excess = math.min(call('ZCARD', key) - most, 10 * budget)
      if excess > 0 then
        discard(key, call('ZRANGE', key, 0, excess - 1))
      end
    end
  end

  -- To be called when letters were written: they live for *age* milliseconds from now, if nothing else becomes of them.
  local function keep(age)
    for _, key in ipairs({ dead_key, letters_key, redriven_key }) do
      call('PEXPIRE', key, age)
    end
  end

  return {
    bury = bury,
    dead_key = dead_key,
    discard = discard,
    keep = keep,
    letters_key = letters_key,
    open = open,
    redriven_key = redriven_key,
    rise = rise,
    trim = trim,
  }
end
