-- Records that a worker takes jobs, or that it no longer does.
-- ARGV: the worker, for how many ms the report is valid (0: it no longer takes jobs)
if ARGV[2] == '0' then return redis.call('ZREM', WORKERS, ARGV[1]) end
local now = now_ms()
redis.call('ZADD', WORKERS, int(now), ARGV[1])
redis.call('ZREMRANGEBYSCORE', WORKERS, '-inf', int(now - ARGV[2]))
return redis.call('PEXPIRE', WORKERS, ARGV[2])
