-- Gives a claimed job back.
-- ARGV: id, epoch, delay in ms, 1 for a handover (which puts it first in line, and does not count as a failed claim) or 2 for a
--   job that waits for its upstream (nor does this, nor as a takeover), upstream calls that it has made so far
-- Returns 1, or 0 where the job is no longer the caller's.
if not owns(ARGV[1], ARGV[2]) or redis.call('ZREM', RUNNING, ARGV[1]) == 0 then return 0 end
local job, now = Q .. 'job:' .. ARGV[1], now_ms()
local s = redis.call('HMGET', job, 'class', 'tenant', 'slots', 'enqueued_ms', 'claim_by_ms')
hold_slots(s[3], ARGV[1], now + s[5] - s[4])  -- It waits again, for as long as it might at first.
if ARGV[4] ~= '0' then redis.call('HSET', job, 'handover', ARGV[4], 'attempts', ARGV[5]) end
if tonumber(ARGV[3]) > 0 then
  redis.call('ZADD', DELAYED, int(now + ARGV[3]), ARGV[1])
else
  put(ARGV[1], s[1], s[2], now, true)
  ring()
end
return 1
