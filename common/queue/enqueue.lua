-- Accepts a job, or refuses it.
-- ARGV: Redis time in ms that the caller last saw, id, tenant, owner, class, maximum of waiting jobs, the same of the tenant,
--   longest wait in ms, expiry in ms, maximum of ids in the owner's index, its expiry in ms;
--   for a request with an idempotency key: the key's name, the request's digest, the key's expiry in ms, an id that no longer
--   counts for the key; else '' or 0 in their places;
--   the budgets that its cost counts for (`spends`, see common/limits/settling.lua);
--   a number, and so many windows: key, window in ms, limit, amount, 1 if the amount is settled at the end;
--   a number, and so many slots: key, limit;
--   a number, and so many budget counters, none of which may be spent: key, limit;
--   a number, and so many alternatives, at least one of which must not be spent: the number of its counters, each: key, limit
-- Returns {'ok', per window what remains and the ms until nothing of it is used…}, or {reason}:
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
if redis.call('ZCARD', ENQUEUED) >= tonumber(ARGV[6]) then return {'full'} end
if redis.call('ZCARD', waiting(class, tenant)) >= tonumber(ARGV[7]) then return {'tenant_full'} end

local next_arg = 17
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
for i, slot in ipairs(slots) do
  redis.call('ZADD', slot[1], int(now + ARGV[8]), id)
  redis.call('PEXPIRE', slot[1], ARGV[9])
  held_slots[i] = slot[1]
end

local job = Q .. 'job:' .. id
redis.call('HSET', job, 'format', '1', 'tenant', tenant, 'class', class, 'epoch', '0', 'reign', master_id(),
  'enqueued_ms', int(now), 'claim_by_ms', int(now + ARGV[8]), 'spends', ARGV[16])
if #reserved > 0 then redis.call('HSET', job, 'reserved', table.concat(reserved, ' ')) end
if #held_slots > 0 then redis.call('HSET', job, 'slots', table.concat(held_slots, ' ')) end
redis.call('PEXPIRE', job, ARGV[9])
put(id, class, tenant, now, false)
local recent = Q .. 'recent:' .. owner
redis.call('ZADD', recent, int(now), id)
redis.call('ZREMRANGEBYRANK', recent, 0, -ARGV[10] - 1)
redis.call('PEXPIRE', recent, ARGV[11])
if once then redis.call('SET', once, id .. ' ' .. ARGV[13], 'PX', ARGV[14]) end
ring(class)
return answer
