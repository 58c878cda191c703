-- Stores the record of a managed key, unless the same or a newer one is stored.
-- KEYS: the key's record (string, JSON), the version of all records (string), the browser origins by key id (hash).
-- ARGV: the record, its updated_ms, its origins as JSON or '' for none, a new version, its expiry in seconds or 0, the key's id.
-- Returns 1 if it stored the record, else 0.
local stored = redis.call('GET', KEYS[1])
if stored then
  local stored_ms = tonumber(string.match(stored, '"updated_ms":(%d+)'))
  if stored == ARGV[1] or (stored_ms and stored_ms > tonumber(ARGV[2])) then
    return 0
  end
end
if tonumber(ARGV[5]) > 0 then
  redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[5])
else
  redis.call('SET', KEYS[1], ARGV[1])
end
if ARGV[3] == '' then
  redis.call('HDEL', KEYS[3], ARGV[6])
else
  redis.call('HSET', KEYS[3], ARGV[6], ARGV[3])
end
redis.call('SET', KEYS[2], ARGV[4])
return 1
