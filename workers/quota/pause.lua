-- Records until when vendors' keys are paused. A pause that already lasts longer stays.
-- KEYS: the hash, name → ms of Redis' clock
-- ARGV: maximum of names, then repeatedly: name, ms from now, ms until the vendor promises more quota (stored in a field of its
--   own if that is later)
local PROMISED = ' promised'
local now, last, count = now_ms(), 0, 0
local stored = redis.call('HGETALL', KEYS[1])
local paused_until = {}
for i = 1, #stored, 2 do
  local till = tonumber(stored[i + 1])
  if string.sub(stored[i], -#PROMISED) == PROMISED then
    -- It belongs to the pause of the same name, and is deleted with it.
  elseif till <= now then
    redis.call('HDEL', KEYS[1], stored[i], stored[i] .. PROMISED)
  else
    paused_until[stored[i]], last, count = till, math.max(last, till), count + 1
  end
end
for i = 2, #ARGV, 3 do
  local till, promised = now + tonumber(ARGV[i + 1]), now + tonumber(ARGV[i + 2])
  if till > (paused_until[ARGV[i]] or 0) and (paused_until[ARGV[i]] or count < tonumber(ARGV[1])) then
    if not paused_until[ARGV[i]] then count = count + 1 end
    redis.call('HSET', KEYS[1], ARGV[i], int(till))
    paused_until[ARGV[i]], last = till, math.max(last, till)
    if promised > till then
      redis.call('HSET', KEYS[1], ARGV[i] .. PROMISED, int(promised))
    else
      redis.call('HDEL', KEYS[1], ARGV[i] .. PROMISED)
    end
  end
end
if last > now then redis.call('PEXPIREAT', KEYS[1], int(last)) end
return 1
