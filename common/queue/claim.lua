-- Hands out jobs: lapsed leases first, then the waiting in fair order.
-- ARGV: seen ms, lease in ms, most to hand out, most waiting background ones of these, most lapsed to hand out, then ids that
--   are not to be handed out
-- Returns: 'stale', or {lapsed leases left, jobs left waiting, {id, epoch, was lapsed, how it was given back, is late, waited ms,
--   is background, workers that died while they ran it, upstream calls before}…, ids of jobs that were set aside}
-- How it was given back: 1 for a handover, or where Redis was lost since the last claim; 2 for a job that waited for its upstream;
--   else 0.
--
-- Tenants take turns. Interactive goes before background, but while both wait every 20th job is a background one: a fleet
-- that is never idle gets through them too, and they cost interactive requests a twentieth of its slots at most.
local BACKGROUND_EACH = 20
-- A claim raises its job's epoch by one. Where another server has become master since the last claim, that one may be lost,
-- and its number with a client already, in the ids of its events: the next is a date then, which none before it can have.
local DATED_FROM_S = 1700000000
local now = now_ms()
if now - tonumber(ARGV[1]) > STALE_MS then return 'stale' end
local room, room_background, room_lapsed, taken = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), {}
local aside = {}
local here  -- Asked for once there is a job.

local function is_class(word) return word == 'interactive' or word == 'background' end

local function put_aside(id)
  set_aside(id, "the job's record cannot be read")
  aside[#aside + 1] = id
end

local function take(id, lapsed)
  local job = Q .. 'job:' .. id
  local s = read_job(id, 'handover', 'enqueued_ms', 'claim_by_ms', 'class', 'slots', 'epoch', 'reign', 'deaths', 'tenant', 'attempts')
  if not (s and tonumber(s[2]) and tonumber(s[3]) and is_class(s[4]) and tonumber(s[6]) and s[9]) then
    if redis.call('EXISTS', job) == 1 then return put_aside(id) end
    redis.call('ZREM', RUNNING, id)  -- Finished or withdrawn meanwhile.
    return
  end
  here = here or reign()
  local epoch, deaths = s[6] + 1, tonumber(s[8] or 0) or 0
  -- Where Redis itself was lost, so may have been the renewals.
  if lapsed and s[7] == here then
    deaths = deaths + 1
    redis.call('HSET', job, 'deaths', int(deaths))
  end
  if s[7] ~= here then epoch = math.max(epoch, math.floor(now / 1000) - DATED_FROM_S) end
  redis.call('HSET', job, 'epoch', int(epoch), 'reign', here)
  redis.call('HDEL', job, 'handover')
  redis.call('ZADD', RUNNING, int(now + ARGV[2]), id)
  pcall(hold_slots, s[5], id, now + ARGV[2] + SLOT_EXTRA_MS)  -- Whatever stands there, it must not keep the job.
  local late = s[6] == '0' and now > tonumber(s[3])
  local given_back = tonumber(s[1] or 0) or 0
  if given_back == 0 and s[7] ~= here then given_back = 1 end
  taken[#taken + 1] = {id, epoch, lapsed and 1 or 0, given_back, late and 1 or 0, now - s[2],
    s[4] == 'background' and 1 or 0, deaths, tonumber(s[10] or 0) or 0}
  room = room - 1
end

if room_lapsed > 0 then
  local not_these = {}
  for i = 6, #ARGV do not_these[ARGV[i]] = true end
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', RUNNING, '-inf', now, 'LIMIT', 0, room_lapsed + #ARGV - 5)) do
    if room > 0 and room_lapsed > 0 and not not_these[id] then
      take(id, true)
      room_lapsed = room_lapsed - 1
    end
  end
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', DELAYED, '-inf', now, 'LIMIT', 0, 100)) do
  local s = read_job(id, 'class', 'tenant')
  if s and is_class(s[1]) and s[2] then put(id, s[1], s[2], now, true)
  elseif redis.call('EXISTS', Q .. 'job:' .. id) == 1 then put_aside(id) end
  redis.call('ZREM', DELAYED, id)
end

-- Hands out the next job of a class; false where none waits. It is running before it waits no more: Redis may refuse the one and
-- not the other, and a job that is in neither is lost.
local function take_waiting(class)
  local tenant = redis.call('LINDEX', rotation(class), 0)
  if not tenant then return false end
  local key = waiting(class, tenant)
  local id = redis.call('ZRANGEBYSCORE', key, '-inf', '+inf', 'LIMIT', 0, 1)[1]
  if id then
    take(id, false)
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
  if not take_waiting(class) then
    class = 'background'
    if room_background <= 0 or not take_waiting(class) then break end
  end
  if class == 'background' then room_background = room_background - 1 end
end

-- What is left is for another worker. The caller does not listen to the bell of a class that it has no room for, so this one does
-- not come straight back.
for _, class in ipairs({'interactive', 'background'}) do
  if redis.call('EXISTS', rotation(class)) == 1 then ring(class) end
end
return {redis.call('ZCOUNT', RUNNING, '-inf', now), redis.call('ZCARD', ENQUEUED), taken, aside}
