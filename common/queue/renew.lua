-- Renews leases, and the concurrency slots of their jobs.
-- ARGV: lease in ms, then id and epoch alternately
-- Returns the ids that another worker owns now. A job that is gone is not among them: if it was removed, its log has ended and
-- its worker learns it from there; if Redis lost it in a failover, only its present worker can end the log.
local due, lost = now_ms() + ARGV[1], {}
for i = 2, #ARGV, 2 do
  local s = read_job(ARGV[i], 'epoch', 'slots') or {'unreadable'}
  -- A lapsed lease that nobody has claimed is still in `running`, and is renewed.
  if s[1] == ARGV[i + 1] and redis.call('ZSCORE', RUNNING, ARGV[i]) then
    redis.call('ZADD', RUNNING, int(due), ARGV[i])
    pcall(hold_slots, s[2], ARGV[i], due + SLOT_EXTRA_MS)
  elseif s[1] then
    lost[#lost + 1] = ARGV[i]
  end
end
return lost
