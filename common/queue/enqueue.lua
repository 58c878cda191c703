-- Accepts a job, or refuses it.
-- ARGV: Redis time in ms that the caller last saw, id, tenant, owner, class, maximum of waiting jobs, the same of the tenant,
--   longest wait in ms, expiry in ms, maximum of ids in the owner's index, its expiry in ms;
--   for a request with an idempotency key: the key's name, the request's digest, the key's expiry in ms, an id that no longer
--   counts for the key; else '' or 0 in their places;
--   the budgets that its cost counts for (`spends`, see common/limits/settling.lua);
--   '1' if the cache answers it, so that there is no job; the ledger's record of such a request: what is known at its start, its
--   end ('': somebody else writes the record);
--   for a request that may share a job: the key under which others find that job, the request's own generation, what the ledger
--   needs to know of it, '1' if it wants no job of its own, '1' if it has read the cache again; else '';
--   a number, and so many windows: key, window in ms, limit, amount, 1 if the amount is settled at the end;
--   a number, and so many slots: key, limit;
--   a number, and so many budget counters, none of which may be spent: key, limit;
--   a number, and so many alternatives, at least one of which must not be spent: the number of its counters, each: key, limit
-- Returns {'ok', per window what remains and the ms until nothing of it is used…}, or {reason}:
--   'alone' (there is no job to share) | 'joined', id of the job that answers, then as for ok |
--   'cached' (the answer of an identical request has come into the cache: read that again) |
--   'stale' | 'full' | 'tenant_full' | 'differs' (the key belongs to another request) | 'held', id | 'busy', number of the slot |
--   'limited', number of the window, ms to wait, then as for ok | 'spent', number of the counter | 'all_spent' |
--   'spent_unknown' (Redis has lost the counters, and the ledger has not restored them yet: a missing counter is not 0)
local now = now_ms()
if now - tonumber(ARGV[1]) > STALE_MS then return {'stale'} end
local id, tenant, owner, class = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local once = ARGV[12] ~= '' and Q .. 'once:' .. ARGV[12]
local held = once and redis.call('GET', once)
if held then
  local holder, digest = string.match(held, '^(%S+) (%S+)$')
  if digest ~= ARGV[13] then return {'differs'} end
  if holder ~= ARGV[15] then return {'held', holder} end
end
local is_answered, flight, own_id = ARGV[17] == '1', ARGV[20], ARGV[21] ~= '' and ARGV[21] or id

-- Whether a request may share a job. If the job's log has ended with an answer, that is so for as long as the ledger's record
-- waits: the ledger makes the record of those that share the log from it.
local function may_join(job_id)
  if not job_id then return false end
  local key = '{' .. job_id .. '}:'
  local state = redis.call('HMGET', key .. 'state', 'ended', 'stop')
  if state[1] == '1' then
    local record_end = redis.call('HGET', key .. 'record', 'end')
    return record_end and cjson.decode(record_end).error == cjson.null
  end
  local left_ms = string.match(state[2] or '', '^left:(%d+)$')
  return state[1] == '0' and state[2] ~= 'cancelled' and not (left_ms and tonumber(left_ms) <= now)
end
local shared = flight ~= '' and redis.call('GET', flight)
local is_cached = shared == CACHED
if not may_join(shared) then shared = false end
if ARGV[23] == '1' and not shared then return {'alone'} end
if is_cached and ARGV[24] ~= '1' then return {'cached'} end
if not (is_answered or shared) then
  if redis.call('ZCARD', ENQUEUED) >= tonumber(ARGV[6]) then return {'full'} end
  if redis.call('ZCARD', waiting(class, tenant)) >= tonumber(ARGV[7]) then return {'tenant_full'} end
end

local next_arg = 25
-- Reads the next list of the arguments. Each item has `width` arguments.
local function read_list(width)
  local list, count = {}, tonumber(ARGV[next_arg])
  next_arg = next_arg + 1
  for i = 1, count do
    list[i] = {unpack(ARGV, next_arg, next_arg + width - 1)}
    next_arg = next_arg + width
  end
  return list
end
local function is_spent(counter) return tonumber(redis.call('GET', counter[1]) or '0') >= tonumber(counter[2]) end

local windows, slots = read_list(5), read_list(2)
local answer, limited, wait = {'ok'}, nil, 0
for i, window in ipairs(windows) do
  if window[5] == '1' and (is_answered or shared) then window[4] = '0' end  -- It uses no tokens at a provider.
  local size, limit, amount = tonumber(window[2]), tonumber(window[3]), tonumber(window[4])
  local live, used = read_window(window[1], size, now)
  if used + amount > limit then
    local ms = wait_ms(live, used + amount - limit, size, now)
    if ms > wait then limited, wait = i, ms end
  end
  answer[#answer + 1] = math.max(0, limit - used)
  answer[#answer + 1] = wait_ms(live, used, size, now)
end
if limited then
  answer[1] = wait
  return {'limited', limited, unpack(answer)}
end
for i, slot in ipairs(slots) do
  redis.call('ZREMRANGEBYSCORE', slot[1], '-inf', int(now))
  if redis.call('ZCARD', slot[1]) >= tonumber(slot[2]) then return {'busy', i} end
end
local counters = read_list(2)
local alternatives, spent = tonumber(ARGV[next_arg]), 0
if (#counters > 0 or alternatives > 0) and redis.call('GET', Q .. 'spent:loaded') ~= 'loaded' then return {'spent_unknown'} end
for i, counter in ipairs(counters) do
  if is_spent(counter) then return {'spent', i} end
end
next_arg = next_arg + 1
for i = 1, alternatives do
  local is_out = false
  for _, counter in ipairs(read_list(2)) do is_out = is_out or is_spent(counter) end
  if is_out then spent = spent + 1 end
end
if alternatives > 0 and spent == alternatives then return {'all_spent'} end

local reserved, held_slots = {}, {}
for i, window in ipairs(windows) do
  local bucket = add_to_window(window[1], tonumber(window[2]), now, window[4])
  answer[2 * i] = math.max(0, answer[2 * i] - tonumber(window[4]))
  if answer[2 * i + 1] == 0 then answer[2 * i + 1] = tonumber(window[2]) end
  if window[5] == '1' then reserved[#reserved + 1] = table.concat({window[1], window[2], bucket, window[4]}, ' ') end
end

-- Lets the client find its generation again.
local function remember()
  local recent = Q .. 'recent:' .. owner
  redis.call('ZADD', recent, int(now), own_id)
  redis.call('ZREMRANGEBYRANK', recent, 0, -ARGV[10] - 1)
  redis.call('PEXPIRE', recent, ARGV[11])
  if once then redis.call('SET', once, own_id .. ' ' .. ARGV[13], 'PX', ARGV[14]) end
end

if is_answered then
  if ARGV[18] == '' then
    remember()
  else  -- It has no log that could be read again.
    redis.call('HSET', '{' .. id .. '}:record', 'asked', ARGV[18], 'end', ARGV[19], 'ended_ms', int(now))
    redis.call('RPUSH', ENDED, id)
  end
  return answer
end

if shared then id = shared end
if flight ~= '' then
  local followers = '{' .. id .. '}:followers'
  redis.call('HSET', followers, own_id, ARGV[22])
  redis.call('PEXPIRE', followers, ARGV[9])
end
for i, slot in ipairs(slots) do
  -- The slot of a job is renewed with its lease. That of a request which shares a job is freed when its reader leaves, or with
  -- the job, which lasts no longer than its expiry.
  redis.call('ZADD', slot[1], int(now + (shared and ARGV[9] or ARGV[8])), shared and own_id or id)
  redis.call('PEXPIRE', slot[1], ARGV[9])
  if shared then
    redis.call('RPUSH', sharers(id), slot[1], own_id)
    redis.call('PEXPIRE', sharers(id), ARGV[9])
  end
  held_slots[i] = slot[1]
end
local state = '{' .. own_id .. '}:state'
if flight ~= '' and redis.call('EXISTS', state) == 1 then redis.call('HSET', state, 'source', id) end
if shared then
  local left = redis.call('PTTL', '{' .. id .. '}:state')
  if left > 0 then redis.call('PEXPIRE', state, left) end
  remember()
  table.insert(answer, 2, id)
  answer[1] = 'joined'
  return answer
end

local job = Q .. 'job:' .. id
redis.call('HSET', job, 'format', '1', 'tenant', tenant, 'class', class, 'epoch', '0', 'reign', master_id(),
  'enqueued_ms', int(now), 'claim_by_ms', int(now + ARGV[8]), 'spends', ARGV[16])
if #reserved > 0 then redis.call('HSET', job, 'reserved', table.concat(reserved, ' ')) end
if #held_slots > 0 then redis.call('HSET', job, 'slots', table.concat(held_slots, ' ')) end
redis.call('PEXPIRE', job, ARGV[9])
put(id, class, tenant, now, false)
remember()
if flight ~= '' then
  redis.call('HSET', job, 'flight', flight)
  redis.call('SET', flight, id, 'PX', ARGV[9])
end
ring(class)
return answer
