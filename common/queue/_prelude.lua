-- Shared by the queue's scripts; put before each of them when they are loaded. The queue's Redis is never a cluster, so
-- keys are built here from one prefix.
local Q = 'sluice:q:'
local ENQUEUED, DELAYED, RUNNING = Q .. 'enqueued', Q .. 'delayed', Q .. 'running'
local ENDED = Q .. 'ended'  -- Ids whose records the ledger has not taken yet, each at least once.
local WORKERS = Q .. 'workers'
local ASIDE, ASIDE_MAX, ASIDE_S = 'sluice:ledger:unreadable', 10000, 30 * 86400  -- As in common/ledger/set_aside.py.
local STALE_MS = 3000  -- A command that waited this long in a frozen Redis was sent by someone who has given up on it.

local function waiting(class, tenant) return Q .. 'waiting:' .. class .. ':' .. tenant end
local function rotation(class) return Q .. 'rotation:' .. class end

-- One item is enough: who takes it claims all it can, and rings again if it leaves work. Each class has a bell of its own, so that
-- no worker takes a ring for jobs that it has no room for.
local function ring(class)
  local bell = class == 'background' and Q .. 'bell:background' or Q .. 'bell'
  if redis.call('LLEN', bell) == 0 then redis.call('LPUSH', bell, '1') end
end

-- Puts a job among the waiting; `first` puts it before all others of its tenant.
local function put(id, class, tenant, now, first)
  local key = waiting(class, tenant)
  if redis.call('EXISTS', key) == 0 then redis.call('RPUSH', rotation(class), tenant) end
  local turn = redis.call('INCR', Q .. 'turn')
  redis.call('ZADD', key, int(first and turn - 2 ^ 52 or turn), id)
  redis.call('ZADD', ENQUEUED, int(now), id)
end

-- The name of this server's time as master: another after each failover and restart, which both may have lost claims.
local function reign()
  local told = redis.pcall('INFO', 'replication')
  return type(told) == 'string' and string.match(told, 'master_replid:(%x+)') or ''
end

-- Fields of a job's record; false where that is none of ours, so that one such does not stop what is done for the others.
local function read_job(id, ...)
  local found = redis.pcall('HMGET', Q .. 'job:' .. id, ...)
  if not found.err then return found end
  if string.find(found.err, 'WRONGTYPE', 1, true) then return false end
  return redis.call('HMGET', Q .. 'job:' .. id, ...)  -- Redis refuses: the script ends as it would.
end

-- Takes a job that cannot be worked on out of the queue, and keeps what is known of it for a person to look at. A log that has
-- no end yet is ended by whoever reads it.
local function set_aside(id, reason)
  local job, record = Q .. 'job:' .. id, {}
  local flat = redis.pcall('HGETALL', job)
  for i = 1, flat.err and 0 or #flat, 2 do record[flat[i]] = flat[i + 1] end
  local entry = {format = 1, kind = 'job', id = id, reason = reason, at_ms = now_ms(), record = record}
  redis.call('LPUSH', ASIDE, cjson.encode(entry))
  redis.call('LTRIM', ASIDE, 0, ASIDE_MAX - 1)
  redis.call('EXPIRE', ASIDE, ASIDE_S)
  for _, place in ipairs({RUNNING, ENQUEUED, DELAYED}) do redis.call('ZREM', place, id) end
  redis.call('DEL', job)
  redis.call('RPUSH', ENDED, id)
end

-- Whether the job is still the one that this claim was given.
local function owns(id, epoch) return redis.call('HGET', Q .. 'job:' .. id, 'epoch') == epoch end
