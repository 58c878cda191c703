-- A replica begins to read, on behalf of one principal.
-- KEYS: state, viewers, tombstone
-- ARGV: replica, owner
-- Returns: 'ok' and the state's fields, 'stranger', 'expired' or 'unknown'
local owner = redis.call('HGET', KEYS[1], 'owner')
if not owner then
  local dead = redis.call('GET', KEYS[3])
  if dead == ARGV[2] then return {'expired'} end
  return {'unknown'}
end
if owner ~= ARGV[2] then return {'stranger'} end
local s = redis.call('HMGET', KEYS[1], 'dialect', 'stream', 'model', 'created_s', 'policy', 'pos', 'ended', 'stop', 'expiry_ms')
if s[7] ~= '1' then
  redis.call('SADD', KEYS[2], ARGV[1])
  redis.call('PEXPIRE', KEYS[2], s[9])
  if string.sub(s[8], 1, 5) == 'left:' then redis.call('HSET', KEYS[1], 'stop', '') end
end
local _, _, last = split(s[6])
return {'ok', s[1], s[2], s[3], s[4], s[5], last, s[7]}
