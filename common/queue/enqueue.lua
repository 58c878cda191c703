-- Accepts a job, or refuses it.
-- ARGV: seen ms, id, tenant, class, most waiting, most waiting of the tenant, longest wait in ms, expiry in ms
-- Returns: 'ok' | 'stale' | 'full' | 'tenant_full'
local now = now_ms()
if now - tonumber(ARGV[1]) > STALE_MS then return 'stale' end
local id, tenant, class = ARGV[2], ARGV[3], ARGV[4]
if redis.call('ZCARD', ENQUEUED) >= tonumber(ARGV[5]) then return 'full' end
if redis.call('ZCARD', waiting(class, tenant)) >= tonumber(ARGV[6]) then return 'tenant_full' end
local job = Q .. 'job:' .. id
redis.call('HSET', job, 'format', '1', 'tenant', tenant, 'class', class, 'epoch', '0',
  'enqueued_ms', int(now), 'claim_by_ms', int(now + ARGV[7]))
redis.call('PEXPIRE', job, ARGV[8])
put(id, class, tenant, now, false)
ring()
return 'ok'
