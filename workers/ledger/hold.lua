-- Takes or renews the lease of the bookkeeper.
-- KEYS: the lease
-- ARGV: token, duration in ms
-- Returns 1, or 0 where another worker has it.
local holder = redis.pcall('GET', KEYS[1])  -- A key of another type counts as free, and is overwritten.
if type(holder) == 'string' and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
