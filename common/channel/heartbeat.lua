-- Tells the listeners of a quiet log how far it goes, and its owner whether to stop.
-- KEYS: state, live
-- ARGV: epoch, token
-- Returns an answer (see the prelude).
local s = redis.call('HMGET', KEYS[1], 'epoch', 'token', 'last', 'ended', 'stop')
if not s[3] then return answer('gone') end
if s[4] == '1' then return answer('ended', s[3]) end
if s[1] ~= ARGV[1] or s[2] ~= ARGV[2] then
  if tonumber(s[1]) < tonumber(ARGV[1]) then return answer('behind', s[3], stop_now(s[5])) end
  return answer('fenced', s[3])
end
local listeners = redis.call('PUBLISH', KEYS[2], 'beat ' .. s[3] .. ' ' .. s[3] .. '\n')
return answer('ok', s[3], stop_now(s[5]), listeners)
