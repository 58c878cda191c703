-- Removes entries.
-- ARGV: the entries' keys
-- Returns how many of them were still there.
local removed = 0
for _, key in ipairs(ARGV) do
  removed = removed + redis.call('EXISTS', ENTRY .. key)
  remove(key)
end
return removed
