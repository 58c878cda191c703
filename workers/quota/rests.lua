-- Records which deployments rest because they are unwell, and which no longer do.
-- KEYS: the hash, name → ms of Redis' clock until which it rests, and name .. ' times' → its rests in a row
-- ARGV: maximum of names, how long the end of a rest is kept in ms, then repeatedly: name, ms from now (0: it is well), times
local TIMES = ' times'
local now, kept = now_ms(), tonumber(ARGV[2])
local stored = redis.call('HGETALL', KEYS[1])
local count = 0
for i = 1, #stored, 2 do
  if string.sub(stored[i], -#TIMES) == TIMES then
    -- It belongs to the rest of the same name, and is deleted with it.
  elseif tonumber(stored[i + 1]) < now - kept then
    redis.call('HDEL', KEYS[1], stored[i], stored[i] .. TIMES)
  else
    count = count + 1
  end
end
for i = 3, #ARGV, 3 do
  if ARGV[i + 1] == '0' then
    redis.call('HDEL', KEYS[1], ARGV[i], ARGV[i] .. TIMES)
  elseif count < tonumber(ARGV[1]) or redis.call('HEXISTS', KEYS[1], ARGV[i]) == 1 then
    redis.call('HSET', KEYS[1], ARGV[i], int(now + tonumber(ARGV[i + 1])), ARGV[i] .. TIMES, ARGV[i + 2])
    count = count + 1
  end
end
redis.call('PEXPIRE', KEYS[1], int(kept + 120000))
return 1
