-- Ends a log that no worker will end, with the next epoch and a new token, so that a late owner is fenced.
-- KEYS: state, log, live, viewers, request, tombstone, record, followers
-- ARGV: token, data
local s = redis.call('HMGET', KEYS[1], 'pos', 'ended')
if not s[1] then return 'gone' end
if s[2] == '1' then return 'ok' end
local epoch, _, last = split(s[1])
epoch = string.format('%d', epoch + 1)
local id = epoch .. '-0'
add(KEYS[2], KEYS[3], last, id, 'end', ARGV[2])
finish(KEYS, ARGV[2], true)
redis.call('HSET', KEYS[1], 'ended', '1', 'pos', position(epoch, ARGV[1], id, true))
return 'ok'
