-- Releases a claimed job: it waits again, first in line, or is delayed.
-- ARGV: id, epoch, delay in ms, how, upstream calls that it has made so far
--   how: 'handover' or 'postponed' (the job waits for its upstream), which both do not count as a failed claim; 'failed', which
--   counts as a worker's death; or ''
-- Returns 1, or 0 where the job no longer belongs to the caller.
if not owns(ARGV[1], ARGV[2]) or not redis.call('ZSCORE', RUNNING, ARGV[1]) then return 0 end
local job, now = Q .. 'job:' .. ARGV[1], now_ms()
local s = redis.call('HMGET', job, 'class', 'tenant', 'slots', 'enqueued_ms', 'claim_by_ms')
hold_slots(s[3], ARGV[1], now + s[5] - s[4])  -- It may wait as long again as at first.
local released = ({handover = 1, postponed = 2})[ARGV[4]]
if released then redis.call('HSET', job, 'handover', released, 'attempts', ARGV[5]) end
if ARGV[4] == 'failed' then redis.call('HINCRBY', job, 'deaths', 1) end
if tonumber(ARGV[3]) > 0 then
  redis.call('ZADD', DELAYED, int(now + ARGV[3]), ARGV[1])
else
  put(ARGV[1], s[1], s[2], now, true)
  ring(s[1])
end
redis.call('ZREM', RUNNING, ARGV[1])  -- Last: a job that is in no structure is lost.
return 1
