-- Shared by the channel's scripts, and put before each of them when they are loaded.
--
-- The state's field `pos` is '<epoch> <token> <last id>': who wrote last, and where the log ends. It is followed by ' !' where
-- other fields matter (a stop flag, claims without a frame, the end). So an append usually compares one string only.

-- An answer to a writer: status, the log's last id, the stop flag, listeners (-1: unknown).
local function answer(status, last, stop, listeners)
  return {status, last or '0-0', stop or 'no', listeners or -1}
end

local function split(pos)
  local epoch, token, last = string.match(pos, '^(%d+) (%S*) (%S+)')
  return tonumber(epoch), token, last
end

-- Returns the two numbers of a frame's id.
local function parts(id)
  local epoch, n = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(epoch), tonumber(n)
end

local function position(epoch, token, last, has_more)
  return epoch .. ' ' .. token .. ' ' .. last .. (has_more and ' !' or '')
end

-- Makes the next append read the flags.
local function flag(key)
  local pos = redis.call('HGET', key, 'pos')
  if string.sub(pos, -1) ~= '!' then redis.call('HSET', key, 'pos', pos .. ' !') end
end

-- Returns the effective stop flag. It is stored as '', 'cancelled', or 'left:<ms>': effective from that moment on. The field
-- `absence` says what it is then: 'left' or 'api_ended'.
local function stop_now(stop, absence)
  if not stop or stop == '' then return 'no' end
  if stop == 'cancelled' then return stop end
  if tonumber(string.sub(stop, 6)) <= now_ms() then return absence or 'left' end
  return 'no'
end

-- Appends one frame and publishes it. A message is '<kind> <previous id> <id>\n<data>'.
local function add(log, live, previous, id, kind, data)
  local added = redis.pcall('XADD', log, id, 'k', kind, 'd', data)
  -- If the frame is there already, an earlier run was ended after this step, because Redis refused the next one.
  if type(added) == 'table' and #redis.call('XRANGE', log, id, id) == 0 then
    redis.call('XADD', log, id, 'k', kind, 'd', data)  -- Fails again, and raises the reason.
  end
  return redis.call('PUBLISH', live, kind .. ' ' .. previous .. ' ' .. id .. '\n' .. data)
end

-- Does what belongs to the end of a log. The caller appends the frame before, and sets `ended` and the position afterwards, in
-- one step: then this does not run again. Writes the ledger's record, which stays until the ledger has collected it.
-- All other keys of the generation get their expiry. The keys of an audited generation keep no expiry until the ledger has
-- read them; then the ledger sets it. If no worker wrote the end (`is_unowned`), the ledger estimates the usage, and needs the
-- request for as long as the log.
-- Generations that share the log (followers) get the same expiry; who follows is known until the ledger has read it.
-- keys: state, log, live, viewers, request, tombstone, record, followers
local function finish(keys, data, is_unowned)
  local s = redis.call('HMGET', keys[1], 'owner', 'retention_ms', 'tombstone_ms', 'asked', 'audited', 'note')
  redis.call('HSET', keys[7], 'asked', s[4] or '', 'end', data, 'ended_ms', string.format('%d', now_ms()))
  if is_unowned and s[6] then redis.call('HSET', keys[7], 'note', s[6]) end
  if s[5] == '1' then
    redis.call('DEL', keys[4])
    for i = 1, 5 do redis.call('PERSIST', keys[i]) end
  else
    redis.call('PEXPIRE', keys[1], s[2])
    redis.call('PEXPIRE', keys[2], s[2])
    if is_unowned then
      redis.call('DEL', keys[4])
      redis.call('PEXPIRE', keys[5], s[2])
    else
      redis.call('DEL', keys[4], keys[5])
    end
  end
  redis.call('SET', keys[6], s[1], 'PX', s[2] + s[3])
  local followers = redis.call('HKEYS', keys[8])
  for _, id in ipairs(followers) do
    local state = '{' .. id .. '}:state'
    local owner = redis.call('HGET', state, 'owner')
    if owner then
      redis.call('PEXPIRE', state, s[2])
      redis.call('SET', '{' .. id .. '}:tombstone', owner, 'PX', s[2] + s[3])
    end
  end
  if #followers > 0 then redis.call('PERSIST', keys[8]) end
end
