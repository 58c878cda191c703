-- Removes an ended log before it expires. It stays while it runs, or if the ledger has not read it yet.
-- KEYS: state, log, live, viewers, request, tombstone, record, followers
-- Returns 1 if it is gone now, or was gone already; else 0.
local ended = redis.call('HGET', KEYS[1], 'ended')
if ended == '0' or (ended and redis.call('PTTL', KEYS[1]) < 0) then return 0 end
redis.call('DEL', KEYS[1], KEYS[2], KEYS[5])
return 1
