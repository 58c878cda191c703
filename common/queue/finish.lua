-- Removes a job that its worker has ended, settles what it was charged for, and lists it for the ledger.
-- ARGV: id, epoch, tokens used, cost in nano-dollars, the day, the month, '1' if its answer is in the cache, then for each provider
--   that was paid 'provider:…=…' and its share of the cost
-- Returns the counters that passed a mark of their budgets with this job, each with the mark in percent.
local job = Q .. 'job:' .. ARGV[1]
local s = redis.call('HMGET', job, 'epoch', 'slots', 'reserved', 'spends', 'flight')
if not s[1] then redis.call('RPUSH', ENDED, ARGV[1]) end  -- A failover lost the job, but not the record of its end.
if s[1] ~= ARGV[2] then return {} end
free_slots(s[2], ARGV[1])
settle_tokens(s[3], tonumber(ARGV[3]), now_ms())
local crossed = {}
settle_cost(s[4], ARGV[4], ARGV[5], ARGV[6], crossed)
for i = 8, #ARGV, 2 do settle_cost(ARGV[i], ARGV[i + 1], ARGV[5], ARGV[6], crossed) end
close_flight(s[5], ARGV[1], ARGV[7] == '1')  -- Before the ledger collects the record: nobody can join any more.
redis.call('ZREM', RUNNING, ARGV[1])
redis.call('DEL', job)
redis.call('RPUSH', ENDED, ARGV[1])
return crossed
