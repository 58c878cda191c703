-- Claims jobs: lapsed leases first, then waiting jobs in fair order.
-- ARGV: Redis time in ms that the caller last saw, lease in ms, maximum of jobs, maximum of waiting background jobs among these,
--   maximum of lapsed jobs, the claims' token or '' (then no log is fenced), the number of dead workers from which on a log is not
--   fenced, then ids that must not be claimed as lapsed
-- Returns: 'stale', or {lapsed leases left, jobs left waiting, {id, epoch, was lapsed, how it was released, is late, waited ms,
--   is background, workers that died while they ran it, upstream calls before, what `fence_log` returns or false}…, ids of jobs
--   that were set aside}
-- How it was released: 1 for a handover, or where Redis failed over since the last claim; 2 for a job that waited for its
--   upstream; else 0.
--
-- Tenants take turns. Interactive jobs go first, but while both classes wait, every 20th job is a background one: so a fleet
-- that is never idle processes them too, and they take at most a twentieth of the slots from interactive requests.
local BACKGROUND_EACH = 20
-- A claim raises its job's epoch by one. Where another server has become master since the last claim, that claim may be lost,
-- while a client already has its epoch in event ids. Then the next epoch is made of the date, which no earlier epoch can equal.
local DATED_FROM_S = 1700000000
local now = now_ms()
if now - tonumber(ARGV[1]) > STALE_MS then return 'stale' end
local room, room_background, room_lapsed, claimed = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), {}
local set_aside_ids = {}
local present_master  -- Read when the first job is claimed.

local function is_class(class) return class == 'interactive' or class == 'background' end

local function set_unreadable_aside(id)
  set_aside(id, "the job's record cannot be read")
  set_aside_ids[#set_aside_ids + 1] = id
end

local function claim(id, lapsed)
  local job = Q .. 'job:' .. id
  local s = read_job(id, 'handover', 'enqueued_ms', 'claim_by_ms', 'class', 'slots', 'epoch', 'reign', 'deaths', 'tenant', 'attempts')
  if not (s and tonumber(s[2]) and tonumber(s[3]) and is_class(s[4]) and tonumber(s[6]) and s[9]) then
    if redis.call('EXISTS', job) == 1 then return set_unreadable_aside(id) end
    redis.call('ZREM', RUNNING, id)  -- It was finished or withdrawn meanwhile.
    return
  end
  present_master = present_master or master_id()
  local epoch, deaths = s[6] + 1, tonumber(s[8] or 0) or 0
  -- After a failover the renewals may be lost too, so the lapsed lease does not prove a death.
  if lapsed and s[7] == present_master then
    deaths = deaths + 1
    redis.call('HSET', job, 'deaths', int(deaths))
  end
  if s[7] ~= present_master then epoch = math.max(epoch, math.floor(now / 1000) - DATED_FROM_S) end
  redis.call('HSET', job, 'epoch', int(epoch), 'reign', present_master)
  if s[1] then redis.call('HDEL', job, 'handover') end
  redis.call('ZADD', RUNNING, int(now + ARGV[2]), id)
  pcall(hold_slots, s[5], id, now + ARGV[2] + SLOT_EXTRA_MS)  -- A bad value in `slots` must not block the job.
  local late = s[6] == '0' and now > tonumber(s[3])
  local released = tonumber(s[1] or 0) or 0
  if released == 0 and s[7] ~= present_master then released = 1 end
  claimed[#claimed + 1] = {id, epoch, lapsed and 1 or 0, released, late and 1 or 0, now - s[2],
    s[4] == 'background' and 1 or 0, deaths, tonumber(s[10] or 0) or 0}
  room = room - 1
end

if room_lapsed > 0 then
  local is_excluded = {}
  for i = 8, #ARGV do is_excluded[ARGV[i]] = true end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', RUNNING, '-inf', now, 'LIMIT', 0, room_lapsed + #ARGV - 7)) do
    if room > 0 and room_lapsed > 0 and not is_excluded[id] then
      claim(id, true)
      room_lapsed = room_lapsed - 1
    end
  end
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', DELAYED, '-inf', now, 'LIMIT', 0, 100)) do
  local s = read_job(id, 'class', 'tenant')
  if s and is_class(s[1]) and s[2] then put(id, s[1], s[2], now, true)
  elseif redis.call('EXISTS', Q .. 'job:' .. id) == 1 then set_unreadable_aside(id) end
  redis.call('ZREM', DELAYED, id)
end

-- Claims the next job of a class; returns false where none waits. The job is added to `running` before it is removed from
-- `waiting`: Redis may refuse one of the two writes, and a job in neither structure would be lost.
local function claim_waiting(class)
  local tenant = redis.call('LINDEX', rotation(class), 0)
  if not tenant then return false end
  local key = waiting(class, tenant)
  local id = redis.call('ZRANGEBYSCORE', key, '-inf', '+inf', 'LIMIT', 0, 1)[1]
  if id then
    claim(id, false)
    redis.call('ZREM', key, id)
    redis.call('ZREM', ENQUEUED, id)
  end
  if redis.call('EXISTS', key) == 1 then redis.call('RPUSH', rotation(class), tenant) end
  redis.call('LPOP', rotation(class))
  return true
end

local function is_backgrounds_turn()
  return redis.call('EXISTS', rotation('interactive')) == 1 and redis.call('EXISTS', rotation('background')) == 1
    and redis.call('INCR', Q .. 'handed') % BACKGROUND_EACH == 0
end

while room > 0 do
  local class = 'interactive'
  if room_background > 0 and is_backgrounds_turn() then class = 'background' end
  if not claim_waiting(class) then
    class = 'background'
    if room_background <= 0 or not claim_waiting(class) then break end
  end
  if class == 'background' then room_background = room_background - 1 end
end

-- Remaining jobs are for another worker. The caller does not wait for the bell of a class that it has no room for, so it is
-- not woken by its own ring.
for _, class in ipairs({'interactive', 'background'}) do
  if redis.call('EXISTS', rotation(class)) == 1 then ring(class) end
end
local lapsed_left, waiting_left = redis.call('ZCOUNT', RUNNING, '-inf', now), redis.call('ZCARD', ENQUEUED)

-- Fences the logs of the claimed jobs, so that their claims need no second step. It comes last: a claim that fails has fenced
-- nothing. A job whose log is not fenced here takes that step itself: one with a large request, one that kills its workers,
-- and one whose keys Redis refuses or cannot read, which must not affect the others.
local REQUESTS_BYTES_MAX = 262144  -- In one answer, without the last request: all callers of a process share its connection.
local token, deaths_max, requests_bytes = ARGV[6], tonumber(ARGV[7]), 0
for _, job in ipairs(token == '' and {} or claimed) do
  local key, deaths = '{' .. job[1] .. '}:', job[8]
  if deaths < deaths_max and requests_bytes < REQUESTS_BYTES_MAX then
    local is_done, fenced = pcall(fence_log, key .. 'state', key .. 'log', key .. 'live', key .. 'request', int(job[2]), token,
      int(job[4]), true)
    if is_done and fenced then
      job[10] = fenced
      requests_bytes = requests_bytes + #(fenced[4] or '')
    end
  end
end
return {lapsed_left, waiting_left, claimed, set_aside_ids}
