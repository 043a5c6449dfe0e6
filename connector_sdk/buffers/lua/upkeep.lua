-- What most scripts need beyond shared.lua: this file is put after it. The functions are made by calling upkeep(), so that
-- append.lua, which seldom needs them, need not pay for them.

local function upkeep()
  local leases_key, held_key = tag .. ':leases', tag .. ':held'

  local function unpack_state(state)
    local size, newest, time, arrival, touched = struct.unpack('>dddc7d', state)
    return { size = size, newest = newest, time = time, arrival = arrival, touched = touched }
  end

  -- Somebody else may have put members there that are none of ours: those have no time and little to sort by.
  local function arrival_of(member)
    return #member >= 7 and string.sub(member, 1, 7) or member .. string.rep('\0', 7 - #member)
  end

  -- Arrivals as numbers: servers compare texts by the rules of some language.
  local function order_of(arrival)
    return (struct.unpack('>I7', arrival))
  end

  local function time_of(member)
    if not string.find(member, '^[asu]', 16) then
      return 0
    end
    local time = struct.unpack('>d', member, 8)
    return time == time and time or 0
  end

  local function field_after(member, from)
    local colon = string.find(member, ':', from, true)
    if not colon or colon - from > 8 then
      return nil, from
    end
    if colon == from then
      return nil, colon + 1
    end
    local length = tonumber(string.sub(member, from, colon - 1), 16)
    if not length then
      return nil, from
    end
    return string.sub(member, colon + 1, colon + length), colon + 1 + length
  end

  -- The entry of a member in ids, nil without one.
  local function known_as(member)
    if string.byte(member, 17) == 58 then -- ":", no event id
      return nil
    end
    local id, after = field_after(member, 17)
    if not id then
      return nil
    end
    local origin = field_after(member, after)
    return (origin or '') .. '\255' .. id
  end

  local function type_of(member)
    local kind = string.sub(member, 16, 16)
    if kind == 'a' then
      return 'actions'
    elseif kind == 's' then
      return 'summary'
    end
    local id, after = field_after(member, 17)
    if id then
      local _
      _, after = field_after(member, after)
    end
    return (field_after(member, after)) or ''
  end

  -- Events with these ids have gone: know them for a while yet.
  local function let_go(names)
    if remember <= 0 then
      call_with(names, 'ZREM', ids_key)
      return
    end
    local scored = {}
    for _, name in ipairs(names) do
      scored[#scored + 1] = now_ms + remember
      scored[#scored + 1] = name
    end
    call_with(scored, 'ZADD', ids_key, 'XX')
  end

  local function let_go_members(members)
    if account.ids == 0 then
      return
    end
    local names = {}
    for index = 1, #members do
      names[#names + 1] = known_as(members[index])
    end
    let_go(names)
  end

  -- Events with these ids are here again.
  local function know(names)
    local scored = {}
    for _, name in ipairs(names) do
      scored[#scored + 1] = -now_ms
      scored[#scored + 1] = name
    end
    call_with(scored, 'ZADD', ids_key)
    if #names > 0 then
      account.ids = 1
    end
  end

  -- Give up a whole session.
  local function give_up(label, reason, key_may_be_gone)
    local state = call('HGET', state_key, label)
    local key = tag .. ':' .. label
    local size = call('ZCARD', key)
    local expected = 0
    if state then
      state = unpack_state(state)
      expected = state.size
      call('ZREM', heads_key, state.arrival .. label)
    end
    if size > 0 and account.ids == 1 then
      let_go_members(call('ZRANGE', key, 0, -1))
    end
    call('DEL', key)
    call('HDEL', state_key, label)
    local touched = call('ZSCORE', touched_key, label)
    call('ZREM', touched_key, label)
    if expected > size and account.ids == 1 and touched then
      -- The key went by itself and nobody can say any more which ids were in it.
      local orphans = call('ZRANGEBYSCORE', ids_key, -tonumber(touched), '(0', 'LIMIT', 0, 1000)
      for index = 1, #orphans do
        call('ZADD', ids_key, 'XX', now_ms + lifetime + remember, orphans[index])
      end
    end
    if expected > size then
      drop(key_may_be_gone and reason or 'lost', expected - size)
      drop(reason, size)
      account.buffered = account.buffered - expected
    else
      account.received = account.received + size - expected
      account.buffered = account.buffered - expected
      drop(reason, size)
    end
  end

  -- Write what is known of a session whose events changed, read anew; false when it has none left. *newest* is nil when it is
  -- to be read too, *old_arrival* nil when the session had no head.
  local function renew_session(label, newest, old_arrival, touched)
    local key = tag .. ':' .. label
    local head = call('ZRANGE', key, 0, 0)[1]
    if not head then
      if old_arrival then
        call('ZREM', heads_key, old_arrival .. label)
      end
      call('HDEL', state_key, label)
      call('ZREM', touched_key, label)
      return false
    end
    local arrival = arrival_of(head)
    if not newest then
      newest = time_of(call('ZRANGE', key, -1, -1)[1])
    end
    local time = time_of(head)
    call('ZADD', heads_key, exact(time), arrival .. label)
    if old_arrival and old_arrival ~= arrival then
      call('ZREM', heads_key, old_arrival .. label) -- after the other, for an empty key would lose its expiry
    end
    call('HSET', state_key, label, pack_state(call('ZCARD', key), newest, time, arrival, touched))
    return true
  end

  -- Begin a new account, and count what is here. If the caller has seen events that are not here, they are lost.
  local function new_account()
    account = {
      epoch = string.format('%014x', now_us),
      seq = 0, received = 0, delivered = 0, buffered = 0, leased = 0, skewed = 0, kept = 0, fresh = 0,
      ids = call('EXISTS', ids_key),
      is_new = true,
    }
    call('DEL', drops_key, held_key, heads_key)
    for _, label in ipairs(call('ZRANGE', touched_key, 0, -1)) do
      renew_session(label, nil, nil, now_ms)
      account.buffered = account.buffered + call('ZCARD', tag .. ':' .. label)
    end
    for _, lease in ipairs(call('ZRANGE', leases_key, 0, -1)) do
      local held = call('LLEN', tag .. ':lease:' .. lease) / 2 - call('SCARD', tag .. ':acked:' .. lease)
      call('HSET', held_key, lease, held)
      call('PEXPIRE', held_key, lifetime)
      account.leased = account.leased + held
    end
    account.received = account.buffered + account.leased
    if account.received > 0 then
      call('HSET', state_key, 'recounted', account.received)
    end
  end

  -- The caller saw another epoch than this one, so the events that it saw then are lost, unless they are here still, or
  -- another process has told of them.
  local function note_loss()
    local seen, field = tonumber(ARGV[3]), 'before:' .. ARGV[2]
    if ARGV[2] == '' or ARGV[2] == account.epoch or seen == 0 then
      return
    end
    local told = tonumber(call('HGET', state_key, field) or call('HGET', state_key, 'recounted') or 0)
    if seen > told then
      account.received = account.received + seen - told
      drop(ARGV[4], seen - told)
      call('HSET', state_key, field, seen)
      account.fresh = 0
    end
  end

  -- How many events a lease still has by the account; *found* should the server have evicted that.
  local function held_by(lease, found)
    return tonumber(call('HGET', held_key, lease) or found)
  end

  -- Some events of a lease have gone.
  local function hold_less(lease, gone)
    if gone > 0 then
      call('HINCRBY', held_key, lease, -gone)
    end
  end

  -- Let events of a session wait again. *group* is score and member of each. *newest* is at least the time of the newest of
  -- the session, or nil when that is to be read.
  local function put_back(label, group, newest)
    local session = tag .. ':' .. label
    local state = call('HGET', state_key, label)
    state = state and unpack_state(state)
    local expected = (state and state.size or 0) + #group / 2
    call_with(group, 'ZADD', session)
    call('PEXPIRE', session, lifetime)
    call('ZADD', touched_key, now_ms, label)
    if newest and state then
      newest = math.max(newest, state.newest)
    end
    renew_session(label, newest, state and state.arrival, now_ms)
    local more = call('ZCARD', session) - expected
    account.received = account.received + math.max(0, more)
    account.buffered = account.buffered + more
    drop('lost', -more)
  end

  -- Let events of a dead lease wait again, the last first so that tickets stay true; true when the lease is empty.
  local function return_events(lease, limit)
    local key, acked_key = tag .. ':lease:' .. lease, tag .. ':acked:' .. lease
    local total = call('LLEN', key) / 2
    local first = math.max(0, total - limit)
    local entries = call('LRANGE', key, first * 2, -1)
    local groups, labels, returned = {}, {}, 0
    for index = 1, #entries, 2 do
      if call('SISMEMBER', acked_key, first + (index - 1) / 2) == 0 then
        local label, member = entries[index], entries[index + 1]
        if not groups[label] then
          groups[label] = {}
          labels[#labels + 1] = label
        end
        local group = groups[label]
        group[#group + 1] = exact(time_of(member))
        group[#group + 1] = member
        returned = returned + 1
      end
    end
    for _, label in ipairs(labels) do
      put_back(label, groups[label])
    end
    account.buffered = account.buffered + returned
    if returned > 0 then
      account.fresh = 0 -- some of the keys may be new, and have no expiry yet
    end
    if first > 0 then
      call('LTRIM', key, 0, first * 2 - 1)
      hold_less(lease, returned)
      account.leased = account.leased - returned
      return false
    end
    local held = held_by(lease, returned)
    account.leased = account.leased - held
    account.received = account.received + math.max(0, returned - held)
    drop('lost', held - returned)
    call('UNLINK', key, acked_key, tag .. ':known:' .. lease)
    call('ZREM', leases_key, lease)
    call('HDEL', held_key, lease)
    return true
  end

  -- Make heads and touched anew, should the server have evicted one of them.
  local function mend_index()
    local size = call('ZCARD', touched_key)
    if call('ZCARD', heads_key) == size and (size > 0 or account.buffered == 0) then
      return
    end
    call('DEL', heads_key)
    local all = call('HGETALL', state_key)
    for index = 1, #all, 2 do
      if all[index] == 'no-session' or string.sub(all[index], 1, 8) == 'session:' then
        local state = unpack_state(all[index + 1])
        call('ZADD', heads_key, exact(state.time), state.arrival .. all[index])
        call('ZADD', touched_key, 'NX', now_ms, all[index])
      end
    end
    account.fresh = 0 -- some of the keys may be new, and have no expiry yet
  end

  -- Make leases and held anew, should the server have evicted one of them.
  local function mend_leases()
    local size = call('ZCARD', leases_key)
    if call('HLEN', held_key) == size then
      if size == 0 then
        drop('lost', account.leased)
        account.leased = 0
      end
      return
    end
    local longest = lifetime
    for _, lease in ipairs(call('HKEYS', held_key)) do
      local expiry = call('PTTL', tag .. ':lease:' .. lease) -- a lifetime after the lease runs out
      longest = math.max(longest, expiry)
      if not call('ZSCORE', leases_key, lease) then
        call('ZADD', leases_key, now_ms + math.max(0, expiry - lifetime), lease)
      end
    end
    for _, lease in ipairs(call('ZRANGE', leases_key, 0, -1)) do
      local key = tag .. ':lease:' .. lease
      longest = math.max(longest, call('PTTL', key))
      call('HSETNX', held_key, lease, math.max(0, call('LLEN', key) / 2 - call('SCARD', tag .. ':acked:' .. lease)))
    end
    call('PEXPIRE', leases_key, longest)
    call('PEXPIRE', held_key, longest)
  end

  -- Whether a lease whose name does not begin with *holder* has events.
  local function is_held_by_others(holder)
    for _, lease in ipairs(call('ZRANGE', leases_key, 0, -1)) do
      if string.sub(lease, 1, #holder) ~= holder and tonumber(call('HGET', held_key, lease) or 0) > 0 then
        return true
      end
    end
    return false
  end

  -- Return leases that ran out, give up sessions that nobody writes to, forget ids; false when there is more to do.
  local function keep_house()
    local left = budget
    account.kept = now_ms
    for _, lease in ipairs(call('ZRANGEBYSCORE', leases_key, '-inf', now_ms, 'LIMIT', 0, 100)) do
      local size = call('LLEN', tag .. ':lease:' .. lease) / 2
      if not return_events(lease, left) then
        return false
      end
      left = left - size - 1
      if left <= 0 then
        return false
      end
    end
    -- A little before the keys expire by themselves, while their events can still be told.
    local idle_since = now_ms - lifetime + math.min(5000, lifetime / 10)
    for _, label in ipairs(call('ZRANGEBYSCORE', touched_key, '-inf', idle_since, 'LIMIT', 0, left)) do
      local state = call('HGET', state_key, label)
      give_up(label, 'expired', true)
      left = left - (state and unpack_state(state).size or 0) - 1
      if left <= 0 then
        return false
      end
    end
    if account.ids == 1 then
      -- As many as can arrive between two calls of this, or nearly: else there would be ever more of them.
      local forgotten = math.min(10000, call('ZCOUNT', ids_key, 0, now_ms))
      if forgotten > 0 then
        local first = call('ZCOUNT', ids_key, '-inf', '(0')
        call('ZREMRANGEBYRANK', ids_key, first, first + forgotten - 1)
      end
    end
    return true
  end

  -- True while a lease is there and has not run out.
  local function is_held(lease)
    local deadline = call('ZSCORE', leases_key, lease)
    return deadline and tonumber(deadline) > now_ms
  end

  local function keep_lease_keys(lease, hold)
    if account.ids == 1 and call('PTTL', ids_key) < hold + lifetime + remember then
      call('PEXPIRE', ids_key, hold + lifetime + remember)
    end
    call('ZADD', leases_key, now_ms + hold, lease)
    if call('PTTL', leases_key) < hold + lifetime then
      call('PEXPIRE', leases_key, hold + lifetime)
    end
    if call('PTTL', held_key) < hold + lifetime then
      call('PEXPIRE', held_key, hold + lifetime)
    end
    for _, kind in ipairs({ ':lease:', ':acked:', ':known:' }) do
      call('PEXPIRE', tag .. kind .. lease, hold + lifetime)
    end
  end

  -- Put events that were removed from their sessions on a lease. *entries* are label and member of each. Returns the ticket of
  -- the first of them.
  local function lend(lease, hold, entries)
    local lease_key, known_key = tag .. ':lease:' .. lease, tag .. ':known:' .. lease
    local first_ticket = call('LLEN', lease_key) / 2
    local taken, known = #entries / 2, {}
    if account.ids == 1 then
      for index = 2, #entries, 2 do
        known[#known + 1] = known_as(entries[index])
      end
    end
    if first_ticket == 0 then
      call('UNLINK', tag .. ':acked:' .. lease) -- the list was evicted: these tickets are others
    end
    call_with(entries, 'RPUSH', lease_key)
    call_with(known, 'RPUSH', known_key)
    if taken > 0 then
      account.leased = account.leased + taken
      call('HINCRBY', held_key, lease, taken)
    end
    if first_ticket + taken > 0 then
      keep_lease_keys(lease, hold)
    end
    return first_ticket
  end

  -- A reply with the members of *entries* at its end.
  local function reply_with_events(entries, ...)
    local reply = reply_with(...)
    local offset = #reply
    for index = 2, #entries, 2 do
      offset = offset + 1
      reply[offset] = entries[index]
    end
    return reply
  end

  -- Account for a session from which *taken* events were removed. *expected* is how many it was to have, *size* how many it had.
  local function settle_session(label, state, size, taken)
    local expected = state and state.size or 0
    if size < expected then
      drop('lost', expected - size)
    else
      account.received = account.received + size - expected
    end
    account.buffered = account.buffered - expected + size - taken
    if not state then
      call('PEXPIRE', tag .. ':' .. label, lifetime) -- somebody else made it
    end
    if taken > 0 or size ~= expected then
      renew_session(label, state and state.newest, state and state.arrival, state and state.touched or now_ms)
    end
  end

  -- The sessions of some heads as runs: label, key, state; events loaded and taken so far.
  local function runs_of(heads)
    local runs = {}
    for first = 1, #heads, 2000 do
      local labels = {}
      for index = first, math.min(first + 1999, #heads) do
        labels[#labels + 1] = string.sub(heads[index], 8)
      end
      for offset, packed in ipairs(call('HMGET', state_key, unpack(labels))) do
        local label, state = labels[offset], packed and unpack_state(packed)
        if state then
          runs[#runs + 1] = {
            label = label, key = tag .. ':' .. label, state = state, time = state.time, arrival = state.arrival,
            loaded = 0, taken = 0,
          }
        else
          call('ZREM', heads_key, heads[first + offset - 1])
        end
      end
    end
    return runs
  end

  -- Remove the events that were taken, the first of each run, from their sessions. A run that is over has no more, and its
  -- size is how many it had; any other stands at its next event.
  local function remove_taken(runs)
    local empty_keys, empty_labels, old_heads, new_heads, new_states = {}, {}, {}, {}, {}
    for _, run in ipairs(runs) do
      local state = run.state
      if run.taken > 0 and not run.is_over then
        call('ZREMRANGEBYRANK', run.key, 0, run.taken - 1)
        local left = state.size - run.taken
        if left < 1 then
          -- Somebody put more there than we knew.
          local more = call('ZCARD', run.key) - left
          left = left + more
          account.received = account.received + more
          account.buffered = account.buffered + more
        end
        if run.arrival ~= state.arrival then
          old_heads[#old_heads + 1] = state.arrival .. run.label
        end
        new_heads[#new_heads + 1] = exact(run.time)
        new_heads[#new_heads + 1] = run.arrival .. run.label
        new_states[#new_states + 1] = run.label
        new_states[#new_states + 1] =
          pack_state(left, state.newest, run.time, run.arrival, state.touched)
        account.buffered = account.buffered - run.taken
      elseif run.is_over then
        empty_keys[#empty_keys + 1] = run.key
        empty_labels[#empty_labels + 1] = run.label
        old_heads[#old_heads + 1] = state.arrival .. run.label
        if run.size < state.size then
          drop('lost', state.size - run.size)
        else
          account.received = account.received + run.size - state.size
        end
        account.buffered = account.buffered - state.size
      end
    end
    for first = 1, #empty_keys, 2000 do
      call('UNLINK', unpack(empty_keys, first, math.min(first + 1999, #empty_keys)))
    end
    call_with(empty_labels, 'HDEL', state_key)
    call_with(empty_labels, 'ZREM', touched_key)
    call_with(new_heads, 'ZADD', heads_key)
    call_with(old_heads, 'ZREM', heads_key) -- after the others, for an empty key would lose its expiry
    call_with(new_states, 'HSET', state_key)
  end

  -- Read the account, or begin a new one. Out of memory a server refuses what needs more, unless the script has written
  -- already. So that draining, which frees memory, works then too, scripts that move events begin with a write that needs
  -- none. Of two keys, for the reason told in append.lua.
  local function open_to_move()
    call('UNLINK', tag .. ':nothing', tag .. ':nobody')
    local packed = call('HGET', state_key, 'account')
    if packed then
      open_account(packed)
      mend_leases()
    else
      new_account()
    end
    note_loss()
  end

  -- Put the numberings of all writers aside when there are very many, where they stay for a lifetime.
  local function forget_writers()
    if call('HLEN', state_key) - call('ZCARD', touched_key) <= 1000 then
      return
    end
    local all, writers, fields = call('HGETALL', state_key), {}, {}
    for index = 1, #all, 2 do
      if string.sub(all[index], 1, 7) == 'writer:' then
        writers[#writers + 1] = string.sub(all[index], 8)
        writers[#writers + 1] = all[index + 1]
        fields[#fields + 1] = all[index]
      end
    end
    call('DEL', tag .. ':writers')
    call_with(writers, 'HSET', tag .. ':writers')
    call('PEXPIRE', tag .. ':writers', math.max(lifetime, 60000))
    call_with(fields, 'HDEL', state_key)
  end

  -- Write the account; a new one only if there is something to account for.
  local function close()
    if not account.is_new or account.received > 0 then
      call('HSET', state_key, 'account', close_account(false))
      finish()
    end
  end

  return {
    arrival_of = arrival_of,
    close = close,
    forget_writers = forget_writers,
    give_up = give_up,
    held_by = held_by,
    held_key = held_key,
    hold_less = hold_less,
    is_held = is_held,
    keep_house = keep_house,
    keep_lease_keys = keep_lease_keys,
    know = know,
    known_as = known_as,
    is_held_by_others = is_held_by_others,
    leases_key = leases_key,
    lend = lend,
    let_go = let_go,
    let_go_members = let_go_members,
    mend_index = mend_index,
    new_account = new_account,
    note_loss = note_loss,
    open_to_move = open_to_move,
    order_of = order_of,
    put_back = put_back,
    remove_taken = remove_taken,
    renew_session = renew_session,
    reply_with_events = reply_with_events,
    return_events = return_events,
    runs_of = runs_of,
    settle_session = settle_session,
    time_of = time_of,
    type_of = type_of,
    unpack_state = unpack_state,
  }
end
