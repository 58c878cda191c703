-- Fences a log for a new claim, and returns what the claim must know.
-- KEYS: state, log, live, viewers, request, tombstone
-- ARGV: epoch, token, 1 for a handover
-- Returns: an answer, then 1 if there is a head, claims in a row without a frame, the request
local epoch, token = tonumber(ARGV[1]), ARGV[2]
local s = redis.call('HMGET', KEYS[1], 'epoch', 'token', 'last', 'ended', 'stop', 'barren', 'head', 'expiry_ms')
if not s[3] then return {answer('gone'), 0, 0, false} end
local last, stop = s[3], stop_now(s[5])
if s[4] == '1' then return {answer('ended', last, stop), 0, 0, false} end
local is_resend = tonumber(s[1]) == epoch and s[2] == token
if not is_resend and tonumber(s[1]) >= epoch then return {answer('fenced', last, stop), 0, 0, false} end

local barren = tonumber(s[6])
local listeners = -1
if not is_resend then
  if ARGV[3] ~= '1' then barren = barren + 1 end
  local id = ARGV[1] .. '-0'
  local is_first = last == '0-0'
  listeners = add(KEYS[2], KEYS[3], last, id, 'fence', last)
  if is_first then redis.call('PEXPIRE', KEYS[2], s[8]) end
  redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'token', token, 'last', id, 'barren', barren)
end
return {answer('ok', last, stop, listeners), tonumber(s[7]) or 0, barren, redis.call('GET', KEYS[5])}
