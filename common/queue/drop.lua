-- Takes a claimed job that cannot be ended as others are out of the queue, and sets aside what is known of it. Nothing is
-- settled but its places among the concurrent ones, which need no figures.
-- ARGV: id, epoch, reason, '1' where its record is not to be read by the ledger either
-- Returns 1, or 0 where the job is no longer the caller's.
local s, record = read_job(ARGV[1], 'epoch', 'slots'), '{' .. ARGV[1] .. '}:record'
if s and s[1] ~= ARGV[2] then return 0 end
pcall(free_slots, s and s[2], ARGV[1])
if ARGV[4] == '1' and redis.call('EXISTS', record) == 1 then
  -- The ledger's collector does the rest: it knows what else of an ended generation was kept for it.
  redis.pcall('HSET', record, 'set_aside', ARGV[3])
  redis.call('ZREM', RUNNING, ARGV[1])
  redis.call('DEL', Q .. 'job:' .. ARGV[1])
  redis.call('RPUSH', ENDED, ARGV[1])
else
  set_aside(ARGV[1], ARGV[3])
end
return 1
