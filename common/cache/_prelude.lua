-- Shared by the cache's scripts. All entries and their lists are in one Redis, which is never a cluster.
local C = 'sluice:cache:'
local ENTRY, BY_AGE, BY_EXPIRY, ABOUT, BYTES = C .. 'entry:', C .. 'by_age', C .. 'by_expiry', C .. 'about', C .. 'bytes'
local ENTRY_EXTRA = 400  -- What Redis needs for an entry besides its value: about 380 bytes were measured.

-- Removes what the lists say about an entry. `about` is that, if the caller has it.
local function forget(key, about)
  about = about or redis.call('HGET', ABOUT, key)
  if not about then return end
  redis.call('ZREM', BY_AGE, key)
  redis.call('ZREM', BY_EXPIRY, key)
  redis.call('HDEL', ABOUT, key)
  redis.call('DECRBY', BYTES, int(cjson.decode(about)[1]))
end

local function remove(key, about)
  redis.call('UNLINK', ENTRY .. key)
  forget(key, about)
end
