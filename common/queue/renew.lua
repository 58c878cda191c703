-- Renews leases, and the places of their jobs among the concurrent ones of their principals.
-- ARGV: lease in ms, then id and epoch in turn
-- Returns the ids that are no longer the caller's. A job that is gone is not among them: whoever removed it has ended its log,
-- which tells its worker; and where Redis lost it in a failover there is nobody else who could end that log.
local due, lost = now_ms() + ARGV[1], {}
for i = 2, #ARGV, 2 do
  local s = read_job(ARGV[i], 'epoch', 'slots') or {'nobody knows'}
  -- A lapsed lease that nobody took is still in running, and is renewed.
  if s[1] == ARGV[i + 1] and redis.call('ZSCORE', RUNNING, ARGV[i]) then
    redis.call('ZADD', RUNNING, int(due), ARGV[i])
    pcall(hold_slots, s[2], ARGV[i], due + SLOT_EXTRA_MS)
  elseif s[1] then
    lost[#lost + 1] = ARGV[i]
  end
end
return lost
