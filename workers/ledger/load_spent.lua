-- Adds what the database knows to the budgets' counters, all of it or nothing, and once.
-- KEYS: the marker, then counters
-- ARGV: what the marker must say still, then per counter: amount, expiry in s
-- Returns 1, or 0 where somebody else has begun anew.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
for i = 2, #KEYS do
  add_to_counter(KEYS[i], ARGV[2 * i - 2])
  redis.call('EXPIRE', KEYS[i], ARGV[2 * i - 1])
end
redis.call('SET', KEYS[1], 'loaded')
return 1
