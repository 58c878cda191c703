-- Notes that a worker takes jobs, or that it does so no longer.
-- ARGV: the worker, for how long in ms its word counts; 0: it takes none any more
if ARGV[2] == '0' then return redis.call('ZREM', WORKERS, ARGV[1]) end
local now = now_ms()
redis.call('ZADD', WORKERS, int(now), ARGV[1])
redis.call('ZREMRANGEBYSCORE', WORKERS, '-inf', int(now - ARGV[2]))
return redis.call('PEXPIRE', WORKERS, ARGV[2])
