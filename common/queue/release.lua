-- Gives a claimed job back.
-- ARGV: id, epoch, delay in ms, how ('handover', which puts it first in line; 'postponed', for a job that waits for its upstream,
--   which is no takeover; neither counts as a failed claim; 'failed', which counts as a worker's death; or ''), upstream calls
--   that it has made so far
-- Returns 1, or 0 where the job is no longer the caller's.
if not owns(ARGV[1], ARGV[2]) or not redis.call('ZSCORE', RUNNING, ARGV[1]) then return 0 end
local job, now = Q .. 'job:' .. ARGV[1], now_ms()
local s = redis.call('HMGET', job, 'class', 'tenant', 'slots', 'enqueued_ms', 'claim_by_ms')
hold_slots(s[3], ARGV[1], now + s[5] - s[4])  -- It waits again, for as long as it might at first.
local given_back = ({handover = 1, postponed = 2})[ARGV[4]]
if given_back then redis.call('HSET', job, 'handover', given_back, 'attempts', ARGV[5]) end
if ARGV[4] == 'failed' then redis.call('HINCRBY', job, 'deaths', 1) end
if tonumber(ARGV[3]) > 0 then
  redis.call('ZADD', DELAYED, int(now + ARGV[3]), ARGV[1])
else
  put(ARGV[1], s[1], s[2], now, true)
  ring(s[1])
end
redis.call('ZREM', RUNNING, ARGV[1])  -- Last: a job that is nowhere is lost.
return 1
