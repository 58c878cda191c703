-- The budgets' counters of nano-dollars. Each is a 64-bit integer with a maximum below the overflow: a budget that reaches it
-- is spent anyway. A counter below 0 overflowed in an older version.
local COUNTER_MAX = '9000000000000000000'

-- Adds an amount, which is text so that no digit is lost in a double. Returns the new value, approximately.
local function add_to_counter(counter, amount)
  local before = tonumber(redis.call('GET', counter) or '0')
  if before < 0 or before + tonumber(amount) >= tonumber(COUNTER_MAX) then
    redis.call('SET', counter, COUNTER_MAX)
    return tonumber(COUNTER_MAX)
  end
  return redis.call('INCRBY', counter, amount)
end
