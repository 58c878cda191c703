-- Reserves one call's share of a vendor key's quota, or returns which limit is reached.
-- ARGV: id, lease of its slot in ms, window in ms, then (limit 0: no limit):
--   key and limit of requests; key, limit and amount of tokens; key and limit of concurrency slots
-- Returns {'ok', bucket of its tokens}, or {the limit that is reached, ms until there is enough (0: unknown)}.
local now, size = now_ms(), tonumber(ARGV[3])
local requests, tokens, slots = tonumber(ARGV[5]), tonumber(ARGV[7]), tonumber(ARGV[10])
local reason, wait = nil, 0

local function check(limit_name, key, limit, amount)
  local live, used = read_window(key, size, now)
  if used + amount <= limit then return end
  local ms = wait_ms(live, used + amount - limit, size, now)
  if ms > wait then reason, wait = limit_name, ms end
end

if requests > 0 then check('requests', ARGV[4], requests, 1) end
if tokens > 0 then check('tokens', ARGV[6], tokens, tonumber(ARGV[8])) end
if reason then return {reason, wait} end
if slots > 0 then
  redis.call('ZREMRANGEBYSCORE', ARGV[9], '-inf', int(now))
  if redis.call('ZCARD', ARGV[9]) >= slots then return {'concurrent', 0} end
  hold(ARGV[9], ARGV[1], now, tonumber(ARGV[2]))
end
local bucket = ''
if requests > 0 then add_to_window(ARGV[4], size, now, '1') end
if tokens > 0 then bucket = add_to_window(ARGV[6], size, now, ARGV[8]) end
return {'ok', bucket}
