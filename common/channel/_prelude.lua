-- Shared by the channel's scripts; put before each of them when they are loaded.

-- An answer to a writer: verdict, the log's last id, the stop flag, listeners.
local function answer(verdict, last, stop, listeners)
  return {verdict, last or '0-0', stop or 'no', listeners or 0}
end

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- The stop flag is '', 'cancelled', or 'left:<ms>': due from that moment on.
local function stop_now(flag)
  if not flag or flag == '' then return 'no' end
  if flag == 'cancelled' then return flag end
  if tonumber(string.sub(flag, 6)) <= now_ms() then return 'left' end
  return 'no'
end

-- Appends one frame and tells the listeners. A message is '<kind> <previous id> <id>\n<data>'.
local function add(log, live, previous, id, kind, data)
  redis.call('XADD', log, id, 'k', kind, 'd', data)
  return redis.call('PUBLISH', live, kind .. ' ' .. previous .. ' ' .. id .. '\n' .. data)
end

-- The end of a log: nothing is appended after it, and everything of the generation gets its expiry.
-- keys: state, log, live, viewers, request, tombstone
local function finish(keys)
  local s = redis.call('HMGET', keys[1], 'owner', 'retention_ms', 'tombstone_ms')
  redis.call('HSET', keys[1], 'ended', '1')
  redis.call('PEXPIRE', keys[1], s[2])
  redis.call('PEXPIRE', keys[2], s[2])
  redis.call('DEL', keys[4], keys[5])
  redis.call('SET', keys[6], s[1], 'PX', s[2] + s[3])
end
