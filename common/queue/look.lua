-- Where jobs stand.
-- ARGV: how long in ms a lease must have lapsed for the job to count as abandoned, then ids
-- Returns, per id: 'gone' | 'waiting' | 'late' (nobody has begun, and it is past its time) | 'running' | 'lapsed' | 'abandoned'
local now, found = now_ms(), {}
for i = 2, #ARGV do
  local id = ARGV[i]
  local s = read_job(id, 'claim_by_ms', 'epoch') or {}
  local due = redis.call('ZSCORE', RUNNING, id)
  due = due and tonumber(due)
  if not s[1] then found[i - 1] = 'gone'
  elseif due and due > now then found[i - 1] = 'running'
  elseif due then found[i - 1] = now - due > tonumber(ARGV[1]) and 'abandoned' or 'lapsed'
  elseif now > (tonumber(s[1]) or 0) and (s[2] == '0' or redis.call('EXISTS', '{' .. id .. '}:log') == 0) then
    found[i - 1] = 'late'  -- A claim that was given back, such as while Redis refuses to append to logs, has got nowhere.
  else found[i - 1] = 'waiting' end
end
return found
