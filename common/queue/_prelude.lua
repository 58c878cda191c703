-- Shared by the queue's scripts, and put before each of them when they are loaded. The queue's Redis is never a cluster, so
-- the scripts build their keys from one prefix.
local Q = 'sluice:q:'
local ENQUEUED, DELAYED, RUNNING = Q .. 'enqueued', Q .. 'delayed', Q .. 'running'
local ENDED = Q .. 'ended'  -- Ids whose records the ledger has not stored yet, each at least once.
local WORKERS = Q .. 'workers'
local ASIDE, ASIDE_MAX, ASIDE_S = 'sluice:ledger:unreadable', 10000, 30 * 86400  -- As in common/ledger/set_aside.py.
local STALE_MS = 3000  -- The sender of a command that waited this long in a frozen Redis no longer waits for its answer.

local function waiting(class, tenant) return Q .. 'waiting:' .. class .. ':' .. tenant end
local function rotation(class) return Q .. 'rotation:' .. class end

-- One item is enough: the worker that takes it claims all it can, and rings again if it leaves work. Each class has its own
-- bell, so that no worker takes a ring for jobs that it has no room for.
local function ring(class)
  local bell = class == 'background' and Q .. 'bell:background' or Q .. 'bell'
  if redis.call('LLEN', bell) == 0 then redis.call('LPUSH', bell, '1') end
end

-- Puts a job in line. `first` puts it before all other jobs of its tenant.
local function put(id, class, tenant, now, first)
  local key = waiting(class, tenant)
  if redis.call('EXISTS', key) == 0 then redis.call('RPUSH', rotation(class), tenant) end
  local turn = redis.call('INCR', Q .. 'turn')
  redis.call('ZADD', key, int(first and turn - 2 ^ 52 or turn), id)
  redis.call('ZADD', ENQUEUED, int(now), id)
end

-- The replication id of this master (stored in the job's field `reign`). It changes with each failover and restart, and both
-- may lose claims.
local function master_id()
  local info = redis.pcall('INFO', 'replication')
  return type(info) == 'string' and string.match(info, 'master_replid:(%x+)') or ''
end

-- Returns fields of a job's record, or false where its key is not a hash, so that one bad key does not stop the whole script.
local function read_job(id, ...)
  local values = redis.pcall('HMGET', Q .. 'job:' .. id, ...)
  if not values.err then return values end
  if string.find(values.err, 'WRONGTYPE', 1, true) then return false end
  return redis.call('HMGET', Q .. 'job:' .. id, ...)  -- Redis refuses: this raises the error and ends the script.
end

-- Removes a job that no worker can process from the queue, and keeps its record for a person to inspect. If its log has no
-- end yet, an API that reads the log ends it.
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

-- Whether the job still belongs to the claim with this epoch.
local function owns(id, epoch) return redis.call('HGET', Q .. 'job:' .. id, 'epoch') == epoch end

-- Lets no further request join a job: its log has ended, or will end without an answer. `flight` is the key under which requests
-- find the job, as stored in the job's field of that name. `is_cached`: the answer is in the cache. That is noted for as long as
-- a request may need from its reading of the cache to the queue: one that came too early for the cached answer must not come too
-- late for the job, and call the provider again.
-- The slots of those that joined are freed with the job: the API process that served one may be gone.
local CACHED, CACHED_MS = 'cached', 10000
local function sharers(id) return Q .. 'sharers:' .. id end  -- A list: the key of a slot and who holds it, alternately.
local function close_flight(flight, id, is_cached)
  if not flight then return end
  local held = redis.call('LRANGE', sharers(id), 0, -1)
  for i = 1, #held, 2 do redis.call('ZREM', held[i], held[i + 1]) end
  redis.call('DEL', sharers(id))
  if redis.call('GET', flight) ~= id then return end
  if is_cached then redis.call('SET', flight, CACHED, 'PX', CACHED_MS) else redis.call('DEL', flight) end
end
