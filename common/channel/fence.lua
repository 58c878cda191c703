-- Fences a log for a new claim, and returns what the claim needs.
-- KEYS: state, log, live, request
-- ARGV: epoch, token, 1 for a handover, 2 for a job that waited for its upstream, else 0
-- Returns: an answer, then 1 if there is a head, the latest claims in a row without another frame, the request (or the size of
--   a large one), the note
local pos = redis.call('HGET', KEYS[1], 'pos')
if not pos then return {answer('gone'), 0, 0, false, false} end
local epoch, token, last = split(pos)
local s = redis.call('HMGET', KEYS[1], 'ended', 'stop', 'barren', 'head', 'expiry_ms', 'note', 'large', 'absence')
local stop = stop_now(s[2], s[8])
if s[1] == '1' then return {answer('ended', last, stop), 0, 0, false, false} end
local is_resend = epoch == tonumber(ARGV[1]) and token == ARGV[2]
if not is_resend and epoch >= tonumber(ARGV[1]) then return {answer('fenced', last, stop), 0, 0, false, false} end

local empty_claims, listeners = tonumber(s[3]), -1
if is_resend then
  local id = ARGV[1] .. '-0'
  last = redis.call('XRANGE', KEYS[2], id, id)[1][2][4]
else
  if ARGV[3] == '0' then empty_claims = empty_claims + 1 end
  local id = ARGV[1] .. '-0'
  listeners = add(KEYS[2], KEYS[3], last, id, 'fence', last)
  if last == '0-0' then redis.call('PEXPIRE', KEYS[2], s[5]) end
  redis.call('HSET', KEYS[1], 'barren', empty_claims)
  if ARGV[3] ~= '2' then redis.call('HINCRBY', KEYS[1], 'claims', 1) end
  set_pos(KEYS[1], ARGV[1], ARGV[2], id, s[2] ~= '' or empty_claims > 0)
end
local request = tonumber(s[7]) or redis.call('GET', KEYS[4])
return {answer('ok', last, stop, listeners), tonumber(s[4]) or 0, empty_claims, request, s[6]}
