-- Notes until when keys of vendors are to be left alone; what is noted for longer stays so.
-- KEYS: the hash, name → ms of Redis' clock
-- ARGV: most names, then in turn name, ms from now, and ms until there is more by the vendor's word: a field of its own where
--   that is later
local PROMISED = ' promised'
local now, last, count = now_ms(), 0, 0
local noted = redis.call('HGETALL', KEYS[1])
local found = {}
for i = 1, #noted, 2 do
  local till = tonumber(noted[i + 1])
  if string.sub(noted[i], -#PROMISED) == PROMISED then
    -- It belongs to the pause of its name, and ends with it.
  elseif till <= now then
    redis.call('HDEL', KEYS[1], noted[i], noted[i] .. PROMISED)
  else
    found[noted[i]], last, count = till, math.max(last, till), count + 1
  end
end
for i = 2, #ARGV, 3 do
  local till, promised = now + tonumber(ARGV[i + 1]), now + tonumber(ARGV[i + 2])
  if till > (found[ARGV[i]] or 0) and (found[ARGV[i]] or count < tonumber(ARGV[1])) then
    if not found[ARGV[i]] then count = count + 1 end
    redis.call('HSET', KEYS[1], ARGV[i], int(till))
    found[ARGV[i]], last = till, math.max(last, till)
    if promised > till then
      redis.call('HSET', KEYS[1], ARGV[i] .. PROMISED, int(promised))
    else
      redis.call('HDEL', KEYS[1], ARGV[i] .. PROMISED)
    end
  end
end
if last > now then redis.call('PEXPIREAT', KEYS[1], int(last)) end
return 1
