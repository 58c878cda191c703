-- Removes a replica whose last viewer is gone. If no other replica has viewers, sets the stop flag as the policy says.
-- KEYS: state, viewers
-- ARGV: replica, why it has no viewer left ('left' or 'api_ended')
-- Returns the present stop flag.
redis.call('SREM', KEYS[2], ARGV[1])
local s = redis.call('HMGET', KEYS[1], 'ended', 'stop', 'policy', 'grace_ms', 'absence')
if s[1] ~= '0' or redis.call('EXISTS', KEYS[2]) == 1 then return 'no' end
if s[2] == '' and s[3] ~= 'detach' then
  s[2] = 'left:' .. string.format('%d', now_ms() + (s[3] == 'grace' and tonumber(s[4]) or 0))
  s[5] = ARGV[2]
  redis.call('HSET', KEYS[1], 'stop', s[2], 'absence', s[5])
  flag(KEYS[1])
end
return stop_now(s[2], s[5])
