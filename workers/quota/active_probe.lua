-- Lets one worker of all ask a deployment that rests for its list of models, shortly before the rest is over.
-- KEYS: the hash, name → ms of Redis' clock; the window of its provider's probes
-- ARGV: name, how many ms before the end, for how many ms nobody else may try it, maximum of probes per hour
-- Returns 1 if the caller may ask, else 0.
local HOUR = 3600000
local now, rests_until = now_ms(), redis.call('HGET', KEYS[1], ARGV[1])
if not rests_until or tonumber(rests_until) > now + tonumber(ARGV[2]) then return 0 end
local _, used = read_window(KEYS[2], HOUR, now)
if used >= tonumber(ARGV[4]) then return 0 end
add_to_window(KEYS[2], HOUR, now, '1')
redis.call('HSET', KEYS[1], ARGV[1], int(now + tonumber(ARGV[3])))
return 1
