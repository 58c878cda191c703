-- Adds a replica to the viewers for one principal, or only returns the state.
-- KEYS: state, viewers, tombstone, log
-- ARGV: replica or '' (returns the state only), owner
-- Returns: {'ok', the state's fields…, the end's data or '', the head's data or '', claims, class},
-- {'follows', the generation whose log it reads, dialect, stream, model, created_s, policy, class},
-- {'stranger'} (another owner's), {'expired'} or {'unknown'}
local owner = redis.call('HGET', KEYS[1], 'owner')
if not owner then
  local dead = redis.call('GET', KEYS[3])
  if dead == ARGV[2] then return {'expired'} end
  return {'unknown'}
end
if owner ~= ARGV[2] then return {'stranger'} end
local s = redis.call('HMGET', KEYS[1], 'dialect', 'stream', 'model', 'created_s', 'policy', 'pos', 'ended', 'stop', 'expiry_ms',
  'head', 'claims', 'class', 'source')
if s[13] then return {'follows', s[13], s[1], s[2], s[3], s[4], s[5], s[12]} end
local has_left = string.sub(s[8], 1, 5) == 'left:'
if s[7] ~= '1' and ARGV[1] ~= '' then
  redis.call('SADD', KEYS[2], ARGV[1])
  redis.call('PEXPIRE', KEYS[2], s[9])
  if has_left then redis.call('HSET', KEYS[1], 'stop', '') end
end
local _, _, last = split(s[6])
local finish, head = '', ''
if s[7] == '1' then
  local newest = redis.call('XREVRANGE', KEYS[4], '+', '-', 'COUNT', 1)
  local frame = newest[1]
  finish = frame and frame[2][2] == 'end' and frame[2][4] or ''
end
-- Before the head there are only fences of claims without output: usually few, but many if it often waited for its upstream.
local from = '-'
while s[10] == '1' and head == '' do
  local frames = redis.call('XRANGE', KEYS[4], from, '+', 'COUNT', 16)
  for _, frame in ipairs(frames) do
    if frame[2][2] == 'head' then
      head = frame[2][4]
      break
    end
  end
  if #frames < 16 or frames[16][2][2] ~= 'fence' then break end
  from = '(' .. frames[16][1]
end
return {'ok', s[1], s[2], s[3], s[4], s[5], last, s[7], has_left and '1' or '0', finish, head, tonumber(s[11] or 0),
  s[12] or 'interactive'}
