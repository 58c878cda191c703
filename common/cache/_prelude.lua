-- Shared by the cache's scripts. All entries and their lists are in one Redis, which is never a cluster.
local C = 'sluice:cache:'
local ENTRY, BY_AGE, BY_EXPIRY, ABOUT, BYTES = C .. 'entry:', C .. 'by_age', C .. 'by_expiry', C .. 'about', C .. 'bytes'
local ENTRY_EXTRA = 400  -- What Redis needs for an entry besides its value: about 380 bytes were measured.

-- Removes an entry from the lists. Whoever emptied one of them (a Redis that evicts) must not stop us from removing it from the rest.
local function forget(key)
  local about = redis.call('HGET', ABOUT, key)
  redis.call('ZREM', BY_AGE, key)
  redis.call('ZREM', BY_EXPIRY, key)
  redis.call('HDEL', ABOUT, key)
  if about then redis.call('DECRBY', BYTES, int(cjson.decode(about)[1])) end
end

local function remove(key)
  redis.call('UNLINK', ENTRY .. key)
  forget(key)
end
