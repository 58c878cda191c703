-- Stores what is managed at run time, unless the same or a newer revision of it is stored.
-- KEYS: the document (string, JSON), its revision (string). ARGV: the document, its revision.
-- Returns 1 if it stored the document, else 0.
local stored = tonumber(redis.call('GET', KEYS[2]) or '0') or 0
if stored >= tonumber(ARGV[2]) and redis.call('EXISTS', KEYS[1]) == 1 then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1])
redis.call('SET', KEYS[2], ARGV[2])
return 1
