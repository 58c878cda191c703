-- Creates the state of a new generation.
-- KEYS: state, viewers, request
-- ARGV: replica or '', expiry in ms, the request ('': it is already stored), then the state's fields and values
redis.call('HSET', KEYS[1], 'pos', '0  0-0', 'ended', '0', 'stop', '', 'barren', '0', 'expiry_ms', ARGV[2], unpack(ARGV, 4))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
if ARGV[3] ~= '' then redis.call('SET', KEYS[3], ARGV[3], 'PX', ARGV[2]) end
if ARGV[1] ~= '' then
  redis.call('SADD', KEYS[2], ARGV[1])
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
end
