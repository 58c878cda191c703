-- What the queue's claim does too: it fences the logs of its jobs.

-- Fences a log for a new claim, and returns what the claim needs: an answer, 1 if there is a head, the latest claims in a row
-- without another frame, the request (or the size of a large one), the note.
-- epoch: as text. how: '1' for a handover, '2' for a job that waited for its upstream, else '0'
-- skips_large: do nothing, and return false, if the request is a large one
local function fence_log(state, log, live, request_key, epoch, token, how, skips_large)
  local s = redis.call('HMGET', state, 'pos', 'ended', 'stop', 'absence', 'barren', 'claims', 'head', 'expiry_ms', 'note', 'large')
  if not s[1] then return {answer('gone'), 0, 0, false, false} end
  local last_epoch, last_token, last = split(s[1])
  local stop = stop_now(s[3], s[4])
  if skips_large and s[10] then return false end
  if s[2] == '1' then return {answer('ended', last, stop), 0, 0, false, false} end
  local is_resend = last_epoch == tonumber(epoch) and last_token == token
  if not is_resend and last_epoch >= tonumber(epoch) then return {answer('fenced', last, stop), 0, 0, false, false} end

  local empty_claims, listeners, id = tonumber(s[5]), -1, epoch .. '-0'
  if is_resend then
    last = redis.call('XRANGE', log, id, id)[1][2][4]
  else
    if how == '0' then empty_claims = empty_claims + 1 end
    listeners = add(log, live, last, id, 'fence', last)
    if last == '0-0' then redis.call('PEXPIRE', log, s[8]) end
    -- All at once, and last: a script that Redis ends half-way runs again.
    local pos = position(epoch, token, id, s[3] ~= '' or empty_claims > 0)
    redis.call('HSET', state, 'pos', pos, 'barren', empty_claims, 'claims', (s[6] or 0) + (how == '2' and 0 or 1))
  end
  local request = tonumber(s[10]) or redis.call('GET', request_key)
  return {answer('ok', last, stop, listeners), tonumber(s[7]) or 0, empty_claims, request, s[9]}
end
