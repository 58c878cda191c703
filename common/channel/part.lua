-- Ends one of the generations that share a running log, while the others go on. It gets a log of its own: what the shared one has
-- so far, and an end. If nobody shares the log any more, its writer must stop.
-- KEYS: the generation's state, log, tombstone; the shared log's state, log, live, followers
-- ARGV: the generation, the end's data, 1 if its client can still read it, else 0
-- Returns 'ok', 'ended' (the shared log has ended, and this generation with it) or 'gone'; and 1 if nobody shares the log any more.
local s = redis.call('HMGET', KEYS[1], 'source', 'owner', 'retention_ms', 'tombstone_ms', 'ended')
if s[5] == '1' then return {'ended', 0} end
local shared = redis.call('HMGET', KEYS[4], 'pos', 'ended', 'claims', 'head')
if not (s[1] and shared[1]) then return {'gone', 0} end
if shared[2] == '1' then return {'ended', 0} end
local epoch, _, last = split(shared[1])
redis.call('HSET', KEYS[7], 'left:' .. ARGV[1], int(now_ms()) .. ' ' .. ARGV[2])
if ARGV[3] == '1' then
  for _, frame in ipairs(redis.call('XRANGE', KEYS[5], '-', '+')) do
    redis.call('XADD', KEYS[2], frame[1], unpack(frame[2]))
  end
  epoch = int(epoch + 1)
  redis.call('XADD', KEYS[2], epoch .. '-0', 'k', 'end', 'd', ARGV[2])
  redis.call('PEXPIRE', KEYS[2], s[3])
  redis.call('HSET', KEYS[1], 'pos', epoch .. '  ' .. epoch .. '-0 !', 'ended', '1', 'stop', 'cancelled',
    'claims', shared[3] or 0, 'head', shared[4] or '')
  redis.call('HDEL', KEYS[1], 'source')
  redis.call('PEXPIRE', KEYS[1], s[3])
  redis.call('SET', KEYS[3], s[2], 'PX', s[3] + s[4])
  redis.call('PUBLISH', KEYS[6], 'part ' .. last .. ' ' .. last .. '\n' .. ARGV[1])
end
if ARGV[3] == '0' then return {'ok', 0} end  -- Whoever leaves says so, too; that decides whether the log goes on.
local staying = 0
for _, id in ipairs(redis.call('HKEYS', KEYS[7])) do
  staying = staying + (string.sub(id, 1, 5) == 'left:' and -1 or 1)
end
if staying <= 0 then
  redis.call('HSET', KEYS[4], 'stop', 'cancelled')
  flag(KEYS[4])
end
return {'ok', staying <= 0 and 1 or 0}
