-- Appends frames of one claim, if the log ends where the writer believes.
-- KEYS: state, log, live; where an `end` is among the frames also viewers, request, tombstone, record
-- ARGV: epoch, token, previous id, then per frame: n, kind, data
-- Returns an answer (see the prelude), or only the number of listeners where all went as it nearly always does.
local pos = redis.call('HGET', KEYS[1], 'pos')
if not pos then return answer('gone') end
local owner = ARGV[1] .. ' ' .. ARGV[2] .. ' '

-- Hot path: one more piece of data from the owner, and nothing else to say.
if pos == owner .. ARGV[3] and ARGV[5] == 'data' and not ARGV[7] then
  local id = ARGV[1] .. '-' .. ARGV[4]
  redis.call('HSET', KEYS[1], 'pos', owner .. id)
  return add(KEYS[2], KEYS[3], ARGV[3], id, 'data', ARGV[6])
end

local epoch, token, last = split(pos)
local s = redis.call('HMGET', KEYS[1], 'ended', 'stop')
local stop = stop_now(s[2])
local previous, i = ARGV[3], 4
local is_owner = string.sub(pos, 1, #owner) == owner
if is_owner then  -- Skip what is there already: a resend after a lost answer.
  local last_epoch, last_n = string.match(last, '^(%d+)-(%d+)$')
  while ARGV[i] and last_epoch == ARGV[1] and tonumber(ARGV[i]) <= tonumber(last_n) do
    previous = ARGV[1] .. '-' .. ARGV[i]
    i = i + 3
  end
  if not ARGV[i] then return answer('ok', last, stop) end
end
if s[1] == '1' then return answer('ended', last, stop) end
if not is_owner then
  if epoch >= tonumber(ARGV[1]) then return answer('fenced', last, stop) end
  -- Our own fence is not in the log: Redis lost it. It is the only frame that may be appended again.
  if ARGV[i + 1] ~= 'fence' then return answer('behind', last, stop) end
end
if previous ~= last then return answer('behind', last, stop) end

local listeners, has_ended = 0, false
while ARGV[i] do
  local id, kind = ARGV[1] .. '-' .. ARGV[i], ARGV[i + 1]
  if kind == 'head' then redis.call('HSET', KEYS[1], 'head', '1') end
  listeners = add(KEYS[2], KEYS[3], last, id, kind, ARGV[i + 2])
  has_ended = kind == 'end'
  if kind == 'fence' then redis.call('HINCRBY', KEYS[1], 'claims', 1) else redis.call('HSET', KEYS[1], 'barren', '0') end
  last = id
  i = i + 3
end
set_pos(KEYS[1], ARGV[1], ARGV[2], last, has_ended or (s[2] and s[2] ~= ''))
if has_ended then finish(KEYS, ARGV[i - 1]) end
return answer('ok', last, stop, listeners)
