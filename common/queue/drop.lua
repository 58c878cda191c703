-- Removes a claimed job that cannot be finished normally from the queue, and sets it aside. Its concurrency slots are freed;
-- nothing else is settled.
-- ARGV: id, epoch, reason, '1' where the ledger cannot process its record either
-- Returns 1, or 0 where the job no longer belongs to the caller.
local s, record = read_job(ARGV[1], 'epoch', 'slots', 'flight'), '{' .. ARGV[1] .. '}:record'
if s and s[1] ~= ARGV[2] then return 0 end
pcall(free_slots, s and s[2], ARGV[1])
pcall(close_flight, s and s[3], ARGV[1])
if ARGV[4] == '1' and redis.call('EXISTS', record) == 1 then
  -- The ledger's collector does the rest: it knows which other keys of an ended generation are kept for the ledger.
  redis.pcall('HSET', record, 'set_aside', ARGV[3])
  redis.call('ZREM', RUNNING, ARGV[1])
  redis.call('DEL', Q .. 'job:' .. ARGV[1])
  redis.call('RPUSH', ENDED, ARGV[1])
else
  set_aside(ARGV[1], ARGV[3])
end
return 1
