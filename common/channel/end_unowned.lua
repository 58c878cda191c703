-- Ends a log that no worker will end, with the next epoch and a token of its own, so that a late owner is fenced.
-- KEYS: state, log, live, viewers, request, tombstone
-- ARGV: token, data
local s = redis.call('HMGET', KEYS[1], 'epoch', 'last', 'ended', 'expiry_ms')
if not s[2] then return 'gone' end
if s[3] == '1' then return 'ok' end
local epoch = string.format('%d', s[1] + 1)
local id = epoch .. '-0'
add(KEYS[2], KEYS[3], s[2], id, 'end', ARGV[2])
redis.call('HSET', KEYS[1], 'epoch', epoch, 'token', ARGV[1], 'last', id)
finish(KEYS)
return 'ok'
