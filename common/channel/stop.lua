-- Sets the permanent stop flag, at the request of a client. A viewer that comes back does not clear it.
-- KEYS: state
local ended = redis.call('HGET', KEYS[1], 'ended')
if not ended then return 'gone' end
if ended == '1' then return 'ended' end
redis.call('HSET', KEYS[1], 'stop', 'cancelled')
flag(KEYS[1])
return 'ok'
