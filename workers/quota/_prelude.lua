-- Shared by the scripts for vendors' quotas, which are put behind the windows of common/limits/window.lua.

-- Dates a call's place anew: who does not come back in time has lost it.
local function hold(key, id, now, lease_ms)
  redis.call('ZADD', key, int(now + lease_ms), id)
  redis.call('PEXPIRE', key, int(lease_ms))
end
