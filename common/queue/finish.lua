-- Removes a job that its worker has ended.
-- ARGV: id, epoch
if not owns(ARGV[1], ARGV[2]) then return 0 end
redis.call('ZREM', RUNNING, ARGV[1])
redis.call('DEL', Q .. 'job:' .. ARGV[1])
return 1
