-- Accepts a job, or refuses it.
-- ARGV: seen ms, id, tenant, class, most waiting, most waiting of the tenant, longest wait in ms, expiry in ms,
--   most ids in the tenant's index, its expiry in ms;
--   where the request is to run only once also: the name of its key, its digest, the key's expiry in ms, an id that the
--   key does not count for any more or ''
-- Returns: 'ok' | 'stale' | 'full' | 'tenant_full' | 'differs' (the key belongs to another request) | 'held <id>'
local now = now_ms()
if now - tonumber(ARGV[1]) > STALE_MS then return 'stale' end
local id, tenant, class = ARGV[2], ARGV[3], ARGV[4]
local once = ARGV[11] and Q .. 'once:' .. ARGV[11]
local held = once and redis.call('GET', once)
if held then
  local holder, digest = string.match(held, '^(%S+) (%S+)$')
  if digest ~= ARGV[12] then return 'differs' end
  if holder ~= ARGV[14] then return 'held ' .. holder end
end
if redis.call('ZCARD', ENQUEUED) >= tonumber(ARGV[5]) then return 'full' end
if redis.call('ZCARD', waiting(class, tenant)) >= tonumber(ARGV[6]) then return 'tenant_full' end
local job = Q .. 'job:' .. id
redis.call('HSET', job, 'format', '1', 'tenant', tenant, 'class', class, 'epoch', '0',
  'enqueued_ms', int(now), 'claim_by_ms', int(now + ARGV[7]))
redis.call('PEXPIRE', job, ARGV[8])
put(id, class, tenant, now, false)
local recent = Q .. 'recent:' .. tenant
redis.call('ZADD', recent, int(now), id)
redis.call('ZREMRANGEBYRANK', recent, 0, -ARGV[9] - 1)
redis.call('PEXPIRE', recent, ARGV[10])
if once then redis.call('SET', once, id .. ' ' .. ARGV[12], 'PX', ARGV[13]) end
ring()
return 'ok'
