-- How much of a limit is used in a sliding window. A window is a hash, bucket number → amount. A bucket covers a 60th of the
-- window's time. A bucket counts until all of it is older than the window, so no window ever exceeds the limit, and used
-- amounts become free at most a 60th of the window late.
local BUCKETS = 60

-- Returns the live buckets in order, each {number, amount}, and their sum. Removes expired buckets.
local function read_window(key, window_ms, now)
  local oldest = math.floor(now * BUCKETS / window_ms) - BUCKETS
  local flat, live, used = redis.call('HGETALL', key), {}, 0
  for i = 1, #flat, 2 do
    local bucket, amount = tonumber(flat[i]), tonumber(flat[i + 1])
    if bucket < oldest then
      redis.call('HDEL', key, flat[i])
    else
      live[#live + 1] = {bucket, amount}
      used = used + amount
    end
  end
  table.sort(live, function(a, b) return a[1] < b[1] end)
  return live, used
end

-- Returns the ms until `over` of the used amount is free again. With `over` = all that is used: until the window is empty.
local function wait_ms(live, over, window_ms, now)
  for _, bucket in ipairs(live) do
    over = over - bucket[2]
    if over <= 0 then return math.max(1, math.ceil((bucket[1] + BUCKETS + 1) * window_ms / BUCKETS - now)) end
  end
  return 0
end

-- Adds to the present bucket; returns its number.
local function add_to_window(key, window_ms, now, amount)
  local bucket = string.format('%d', math.floor(now * BUCKETS / window_ms))
  redis.call('HINCRBY', key, bucket, amount)
  redis.call('PEXPIRE', key, string.format('%d', 2 * window_ms))
  return bucket
end

-- Corrects the amount that was reserved in a bucket to the amount that was used. Any excess counts from now on.
local function settle_window(key, window_ms, now, bucket, reserved, used)
  if used < reserved and redis.call('HEXISTS', key, bucket) == 1 then
    redis.call('HINCRBY', key, bucket, string.format('%d', used - reserved))
  elseif used > reserved then
    add_to_window(key, window_ms, now, string.format('%d', used - reserved))
  end
end
