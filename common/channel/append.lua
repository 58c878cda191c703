-- Appends frames of one claim, if the log ends where the writer believes.
-- KEYS: state, log, live, viewers, request, tombstone
-- ARGV: epoch, token, previous id, then per frame: n, kind, data
-- Returns an answer (see the prelude).
local epoch, token, previous = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local s = redis.call('HMGET', KEYS[1], 'epoch', 'token', 'last', 'ended', 'stop', 'barren')
if not s[3] then return answer('gone') end
local last, stop = s[3], stop_now(s[5])
local is_owner = tonumber(s[1]) == epoch and s[2] == token

local i = 4
if is_owner then  -- Skip what is there already: a resend after a lost answer.
  local last_epoch, last_n = string.match(last, '^(%d+)-(%d+)$')
  while ARGV[i] and tonumber(last_epoch) == epoch and tonumber(ARGV[i]) <= tonumber(last_n) do
    previous = ARGV[1] .. '-' .. ARGV[i]
    i = i + 3
  end
  if not ARGV[i] then return answer('ok', last, stop, -1) end
end
if s[4] == '1' then return answer('ended', last, stop) end
if not is_owner then
  if tonumber(s[1]) >= epoch then return answer('fenced', last, stop) end
  -- Our own fence is not in the log: Redis lost it. It is the only frame that may be appended again.
  if ARGV[i + 1] ~= 'fence' then return answer('behind', last, stop) end
end
if previous ~= last then return answer('behind', last, stop) end

local listeners, has_ended = 0, false
while ARGV[i] do
  local id, kind = ARGV[1] .. '-' .. ARGV[i], ARGV[i + 1]
  if kind == 'fence' then redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'token', token) end
  if kind == 'head' then redis.call('HSET', KEYS[1], 'head', '1') end
  listeners = add(KEYS[2], KEYS[3], last, id, kind, ARGV[i + 2])
  if kind ~= 'fence' and s[6] ~= '0' then redis.call('HSET', KEYS[1], 'barren', '0'); s[6] = '0' end
  has_ended = kind == 'end'
  last = id
  i = i + 3
end
redis.call('HSET', KEYS[1], 'last', last)
if has_ended then finish(KEYS) end
return answer('ok', last, stop, listeners)
