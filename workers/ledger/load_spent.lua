-- Adds the sums from the database to the budgets' counters, exactly once, and all or none.
-- KEYS: the marker, then counters
-- ARGV: the value that the marker must still have, then per counter: amount, expiry in s
-- Returns 1, or 0 where another worker has started again.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
for i = 2, #KEYS do
  add_to_counter(KEYS[i], ARGV[2 * i - 2])
  redis.call('EXPIRE', KEYS[i], ARGV[2 * i - 1])
end
redis.call('SET', KEYS[1], 'loaded')
return 1
