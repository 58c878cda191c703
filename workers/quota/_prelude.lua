-- Shared by the scripts for vendors' quotas. It is put after common/limits/window.lua.

-- Takes or renews a call's concurrency slot. The slot is lost unless it is renewed in time.
local function hold(key, id, now, lease_ms)
  redis.call('ZADD', key, int(now + lease_ms), id)
  redis.call('PEXPIRE', key, int(lease_ms))
end
