-- Takes or renews the lease of whoever keeps the books.
-- KEYS: the lease
-- ARGV: token, duration in ms
-- Returns 1, or 0 where it is somebody else's.
local holder = redis.pcall('GET', KEYS[1])  -- What is no text is nobody's, and is written over.
if type(holder) == 'string' and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
