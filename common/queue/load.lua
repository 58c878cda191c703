-- Returns how many jobs wait and run, and which workers there are. It only reads.
-- ARGV: for how many ms a worker's report is valid, maximum of tenants to count
-- Returns {Redis' time in ms, jobs that were ever put in line and not withdrawn from it, waiting jobs of both classes, running jobs,
--   tenants with waiting interactive jobs, {tenant, its waiting interactive jobs…} of the first of these tenants, workers…}
local now = now_ms()
local tenants, counts = redis.call('LRANGE', rotation('interactive'), 0, ARGV[2] - 1), {}
for _, tenant in ipairs(tenants) do
  counts[#counts + 1] = tenant
  counts[#counts + 1] = redis.call('ZCARD', waiting('interactive', tenant))
end
local put_in_line = (redis.call('GET', Q .. 'turn') or 0) - (redis.call('GET', Q .. 'withdrawn') or 0)
return {now, put_in_line, redis.call('ZCARD', ENQUEUED), redis.call('ZCARD', RUNNING),
  redis.call('LLEN', rotation('interactive')), counts, redis.call('ZRANGEBYSCORE', WORKERS, int(now - ARGV[1]), '+inf')}
