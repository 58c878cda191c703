-- Lets one call have its part of a key's quota, or says what stands in the way.
-- ARGV: id, lease of its place in ms, window in ms, then for each a key, a limit (0: none) and for the second an amount:
--   requests' key, limit; tokens' key, limit, amount; places' key, limit
-- Returns {'ok', bucket of its tokens}, or {what is used up, ms until there is enough (0: nobody knows)}.
local now, size = now_ms(), tonumber(ARGV[3])
local requests, tokens, places = tonumber(ARGV[5]), tonumber(ARGV[7]), tonumber(ARGV[10])
local reason, wait = nil, 0

local function check(what, key, limit, amount)
  local live, used = read_window(key, size, now)
  if used + amount <= limit then return end
  local ms = wait_ms(live, used + amount - limit, size, now)
  if ms > wait then reason, wait = what, ms end
end

if requests > 0 then check('requests', ARGV[4], requests, 1) end
if tokens > 0 then check('tokens', ARGV[6], tokens, tonumber(ARGV[8])) end
if reason then return {reason, wait} end
if places > 0 then
  redis.call('ZREMRANGEBYSCORE', ARGV[9], '-inf', int(now))
  if redis.call('ZCARD', ARGV[9]) >= places then return {'concurrent', 0} end
  hold(ARGV[9], ARGV[1], now, tonumber(ARGV[2]))
end
local bucket = ''
if requests > 0 then add_to_window(ARGV[4], size, now, '1') end
if tokens > 0 then bucket = add_to_window(ARGV[6], size, now, ARGV[8]) end
return {'ok', bucket}
