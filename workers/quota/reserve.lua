-- Reserves one call's share of one quota or of several, or returns which limit is reached. All of them or none.
-- ARGV: id, lease of its slots in ms, then for each quota (limit 0: no limit): window in ms;
--   key and limit of requests; key, limit and amount of tokens; key and limit of concurrency slots
-- Returns {'ok', the bucket of its tokens in each quota}, or {the limit that is reached, ms until there is enough (0: unknown),
--   the number of its quota, from 1}.
local FIELDS = 8
local now, reason, wait, which = now_ms(), nil, 0, 0
local quotas = {}
for i = 3, #ARGV, FIELDS do
  quotas[#quotas + 1] = {
    window = tonumber(ARGV[i]),
    requests = {ARGV[i + 1], tonumber(ARGV[i + 2])},
    tokens = {ARGV[i + 3], tonumber(ARGV[i + 4])}, amount = tonumber(ARGV[i + 5]),
    slots = {ARGV[i + 6], tonumber(ARGV[i + 7])},
  }
end

local function check(limit_name, number, limit, amount)
  if limit[2] == 0 then return end
  local live, used = read_window(limit[1], quotas[number].window, now)
  if used + amount <= limit[2] then return end
  local ms = wait_ms(live, used + amount - limit[2], quotas[number].window, now)
  if ms > wait then reason, wait, which = limit_name, ms, number end
end

for number, quota in ipairs(quotas) do
  check('requests', number, quota.requests, 1)
  check('tokens', number, quota.tokens, quota.amount)
end
if reason then return {reason, wait, which} end
for number, quota in ipairs(quotas) do
  if quota.slots[2] > 0 then
    redis.call('ZREMRANGEBYSCORE', quota.slots[1], '-inf', int(now))
    if redis.call('ZCARD', quota.slots[1]) >= quota.slots[2] then return {'concurrent', 0, number} end
  end
end
local answer = {'ok'}
for _, quota in ipairs(quotas) do
  if quota.slots[2] > 0 then hold(quota.slots[1], ARGV[1], now, tonumber(ARGV[2])) end
  if quota.requests[2] > 0 then add_to_window(quota.requests[1], quota.window, now, '1') end
  local bucket = ''
  if quota.tokens[2] > 0 then bucket = add_to_window(quota.tokens[1], quota.window, now, int(quota.amount)) end
  answer[#answer + 1] = bucket
end
return answer
