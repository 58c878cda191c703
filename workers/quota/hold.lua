-- Dates the places of one process's calls anew.
-- ARGV: lease in ms, then places' key and id in turn
local now = now_ms()
for i = 2, #ARGV, 2 do hold(ARGV[i], ARGV[i + 1], now, tonumber(ARGV[1])) end
return 1
