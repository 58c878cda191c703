-- The budgets' counters of nano-dollars. Each is a 64-bit integer that stops short of its end: a budget that has come so far
-- is spent, whatever follows. One below 0 is a counter that an older version let overflow.
local COUNTER_MAX = '9000000000000000000'

-- Adds an amount, given as text so that no digit of it is lost in a double; returns about what there is now.
local function add_to_counter(counter, amount)
  local before = tonumber(redis.call('GET', counter) or '0')
  if before < 0 or before + tonumber(amount) >= tonumber(COUNTER_MAX) then
    redis.call('SET', counter, COUNTER_MAX)
    return tonumber(COUNTER_MAX)
  end
  return redis.call('INCRBY', counter, amount)
end
