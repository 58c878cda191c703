-- Removes a generation that was opened but never enqueued.
-- KEYS: state, log, live, viewers, request, tombstone, record, followers
redis.call('DEL', KEYS[1], KEYS[4], KEYS[5])
