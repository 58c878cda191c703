-- Shared by the queue's scripts; put before each of them when they are loaded. The queue's Redis is never a cluster, so
-- keys are built here from one prefix.
local Q = 'sluice:q:'
local ENQUEUED, DELAYED, RUNNING, BELL = Q .. 'enqueued', Q .. 'delayed', Q .. 'running', Q .. 'bell'
local ENDED = Q .. 'ended'  -- Ids whose records the ledger has not taken yet, each at least once.
local STALE_MS = 3000  -- A command that waited this long in a frozen Redis was sent by someone who has given up on it.

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function int(number) return string.format('%d', number) end
local function waiting(class, tenant) return Q .. 'waiting:' .. class .. ':' .. tenant end
local function rotation(class) return Q .. 'rotation:' .. class end

-- One item is enough: who takes it claims all it can, and rings again if it leaves work.
local function ring()
  if redis.call('LLEN', BELL) == 0 then redis.call('LPUSH', BELL, '1') end
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

-- Whether the job is still the one that this claim was given.
local function owns(id, epoch) return redis.call('HGET', Q .. 'job:' .. id, 'epoch') == epoch end
