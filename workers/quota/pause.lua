-- Notes until when keys of vendors are to be left alone; what is noted for longer stays so.
-- KEYS: the hash, name → ms of Redis' clock
-- ARGV: most names, then name and ms from now in turn
local now, last, count = now_ms(), 0, 0
local noted = redis.call('HGETALL', KEYS[1])
local found = {}
for i = 1, #noted, 2 do
  local till = tonumber(noted[i + 1])
  if till <= now then
    redis.call('HDEL', KEYS[1], noted[i])
  else
    found[noted[i]], last, count = till, math.max(last, till), count + 1
  end
end
for i = 2, #ARGV, 2 do
  local till = now + tonumber(ARGV[i + 1])
  if till > (found[ARGV[i]] or 0) and (found[ARGV[i]] or count < tonumber(ARGV[1])) then
    if not found[ARGV[i]] then count = count + 1 end
    redis.call('HSET', KEYS[1], ARGV[i], int(till))
    found[ARGV[i]], last = till, math.max(last, till)
  end
end
if last > now then redis.call('PEXPIREAT', KEYS[1], int(last)) end
return 1
