-- Returns the states of jobs.
-- ARGV: ms after which a job with a lapsed lease counts as abandoned, then ids
-- Returns, per id: 'gone' | 'waiting' | 'late' (no worker has started it, and its waiting time is over) | 'running' | 'lapsed' |
--   'abandoned'
local now, statuses = now_ms(), {}
for i = 2, #ARGV do
  local id = ARGV[i]
  local s = read_job(id, 'claim_by_ms', 'epoch') or {}
  local due = redis.call('ZSCORE', RUNNING, id)
  due = due and tonumber(due)
  if not s[1] then statuses[i - 1] = 'gone'
  elseif due and due > now then statuses[i - 1] = 'running'
  elseif due then statuses[i - 1] = now - due > tonumber(ARGV[1]) and 'abandoned' or 'lapsed'
  elseif now > (tonumber(s[1]) or 0) and (s[2] == '0' or redis.call('EXISTS', '{' .. id .. '}:log') == 0) then
    statuses[i - 1] = 'late'  -- Also where a claim was released without a log, for example while Redis refuses appends.
  else statuses[i - 1] = 'waiting' end
end
return statuses
