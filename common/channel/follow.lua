-- Creates the state of a generation that reads the log of another one.
-- KEYS: state
-- ARGV: expiry in ms, then the state's fields and values
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
