-- Lets one request of all workers try a deployment whose rest is over.
-- KEYS: the hash, name → ms of Redis' clock
-- ARGV: name, for how many ms nobody else may try it
-- Returns 1 if the caller may try it, else 0.
local rests_until, now = redis.call('HGET', KEYS[1], ARGV[1]), now_ms()
if not rests_until then return 1 end
if tonumber(rests_until) > now then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], int(now + tonumber(ARGV[2])))
return 1
