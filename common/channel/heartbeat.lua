-- Publishes the last id of a quiet log to its listeners, and returns to its owner whether to stop.
-- KEYS: state, live
-- ARGV: epoch, token, a note for the next claim, or ''
-- Returns an answer (see the prelude).
local s = redis.call('HMGET', KEYS[1], 'pos', 'ended', 'stop', 'absence')
if not s[1] then return answer('gone') end
local epoch, token, last = split(s[1])
local stop = stop_now(s[3], s[4])
if s[2] == '1' then return answer('ended', last) end
if epoch ~= tonumber(ARGV[1]) or token ~= ARGV[2] then
  return answer(epoch < tonumber(ARGV[1]) and 'behind' or 'fenced', last, stop)
end
if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], 'note', ARGV[3]) end
return answer('ok', last, stop, redis.call('PUBLISH', KEYS[2], 'beat ' .. last .. ' ' .. last .. '\n'))
