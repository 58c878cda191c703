-- Renews the concurrency slots of one process's calls.
-- ARGV: lease in ms, then the key of the slots and the call's id, alternately
local now = now_ms()
for i = 2, #ARGV, 2 do hold(ARGV[i], ARGV[i + 1], now, tonumber(ARGV[1])) end
return 1
