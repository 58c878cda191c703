-- Renews leases.
-- ARGV: lease in ms, then id and epoch in turn
-- Returns the ids that are no longer the caller's.
local due, lost = int(now_ms() + ARGV[1]), {}
for i = 2, #ARGV, 2 do
  -- A lapsed lease that nobody took is still in running, and is renewed.
  if owns(ARGV[i], ARGV[i + 1]) and redis.call('ZSCORE', RUNNING, ARGV[i]) then
    redis.call('ZADD', RUNNING, due, ARGV[i])
  else
    lost[#lost + 1] = ARGV[i]
  end
end
return lost
