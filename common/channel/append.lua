-- Appends frames of one claim, if the log ends at `previous id`.
-- KEYS: state, log, live; if the last frame is an `end`, also viewers, request, tombstone, record, followers
-- ARGV: '<epoch> <token> ', previous id, then per frame: id, kind, data
-- Returns an answer (see the prelude), or, in the usual case, only the number of listeners.
local pos = redis.call('HGET', KEYS[1], 'pos')

-- Hot path: one more data frame from the owner, and no flags. It is before the prelude, because the prelude's functions would
-- be created on each run.
if pos == ARGV[1] .. ARGV[2] and ARGV[4] == 'data' and not ARGV[6] then
  -- The log is written before the position: Redis may refuse one of the two writes, and a frame that was not logged must not
  -- count as present when it is sent again.
  local added = redis.pcall('XADD', KEYS[2], ARGV[3], 'k', 'data', 'd', ARGV[5])
  if type(added) == 'table' and #redis.call('XRANGE', KEYS[2], ARGV[3], ARGV[3]) == 0 then
    return redis.call('XADD', KEYS[2], ARGV[3], 'k', 'data', 'd', ARGV[5])  -- Fails again, and raises the reason.
  end
  redis.call('HSET', KEYS[1], 'pos', ARGV[1] .. ARGV[3])
  return redis.call('PUBLISH', KEYS[3], 'data ' .. ARGV[2] .. ' ' .. ARGV[3] .. '\n' .. ARGV[5])
end

-- PRELUDE
if not pos then return answer('gone') end
local epoch, _, last = split(pos)
local own_epoch = split(ARGV[1] .. ARGV[2])
local s = redis.call('HMGET', KEYS[1], 'ended', 'stop', 'absence')
local stop = stop_now(s[2], s[3])
local previous, i = ARGV[2], 3
local is_owner = string.sub(pos, 1, #ARGV[1]) == ARGV[1]
if is_owner then  -- Skip frames that the log has: this is a resend after a lost answer.
  local last_epoch, last_n = parts(last)
  while ARGV[i] do
    local id_epoch, n = parts(ARGV[i])
    if id_epoch ~= last_epoch or n > last_n then break end
    previous = ARGV[i]
    i = i + 3
  end
  if not ARGV[i] then return answer('ok', last, stop) end
end
if s[1] == '1' then return answer('ended', last, stop) end
if not is_owner then
  if epoch >= own_epoch then return answer('fenced', last, stop) end
  -- The writer's own fence is not in the log: Redis lost it. It is the only frame that may be appended first.
  if ARGV[i + 1] ~= 'fence' then return answer('behind', last, stop) end
end
if previous ~= last then return answer('behind', last, stop) end

local listeners, has_ended, has_output, has_head = 0, false, false, false
while ARGV[i] do
  local id, kind = ARGV[i], ARGV[i + 1]
  listeners = add(KEYS[2], KEYS[3], last, id, kind, ARGV[i + 2])
  if kind == 'fence' then redis.call('HINCRBY', KEYS[1], 'claims', 1) else has_output = true end
  has_head, has_ended = has_head or kind == 'head', kind == 'end'
  last = id
  i = i + 3
end
local fields = {'pos', ARGV[1] .. last .. ((has_ended or (s[2] and s[2] ~= '')) and ' !' or '')}
if has_output then fields[#fields + 1], fields[#fields + 2] = 'barren', '0' end
if has_head then fields[#fields + 1], fields[#fields + 2] = 'head', '1' end
if has_ended then
  finish(KEYS, ARGV[i - 1])
  fields[#fields + 1], fields[#fields + 2] = 'ended', '1'
end
redis.call('HSET', KEYS[1], unpack(fields))  -- Last: a script that Redis ends half-way runs again.
return answer('ok', last, stop, listeners)
