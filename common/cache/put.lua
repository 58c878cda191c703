-- Stores an entry, and removes the oldest entries until all of them fit.
-- ARGV: the entry's key, the entry, how long it lives in ms, maximum of bytes of all entries, its tenant, its model,
-- its target
-- Returns 1 if it is stored; 0 if it is larger than all entries may be together.
local key, size, ttl = ARGV[1], #ARGV[2] + ENTRY_EXTRA, tonumber(ARGV[3])
local now, max = now_ms(), tonumber(ARGV[4])
if size > max then return 0 end
redis.call('SET', ENTRY .. key, ARGV[2], 'PX', ARGV[3])  -- First of all: a Redis that is full refuses only a script's first write.
forget(key)
for _, expired in ipairs(redis.call('ZRANGEBYSCORE', BY_EXPIRY, '-inf', int(now), 'LIMIT', 0, 100)) do remove(expired) end
while tonumber(redis.call('GET', BYTES) or 0) + size > max do
  local oldest = redis.call('ZRANGE', BY_AGE, 0, 0)[1]
  if not oldest then
    redis.call('DEL', BYTES)  -- Whoever emptied this Redis left the sum behind.
    break
  end
  remove(oldest)
end
redis.call('ZADD', BY_AGE, int(now), key)
redis.call('ZADD', BY_EXPIRY, int(now + ttl), key)
redis.call('HSET', ABOUT, key, cjson.encode({size, ARGV[5], ARGV[6], ARGV[7]}))
redis.call('INCRBY', BYTES, size)
-- The lists live as long as the last entry.
for _, list in ipairs({BY_AGE, BY_EXPIRY, ABOUT, BYTES}) do
  if redis.call('PTTL', list) < ttl then redis.call('PEXPIRE', list, ARGV[3]) end
end
return 1
