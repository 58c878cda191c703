-- Removes a job from wherever it is, after somebody other than its worker has ended its log. A worker that runs it learns that
-- from the log. The tokens that it reserved are given back if no worker ever claimed it; otherwise they stay used.
-- ARGV: id
-- Returns 1; 0 where it was gone; -1 where its record could not be read and the job was set aside.
local job = Q .. 'job:' .. ARGV[1]
local s = read_job(ARGV[1], 'class', 'tenant', 'epoch', 'slots', 'reserved', 'flight')
if not (s and s[1] and s[2]) and redis.call('EXISTS', job) == 1 then
  set_aside(ARGV[1], "the job's record cannot be read")
  return -1
end
pcall(close_flight, s and s[6], ARGV[1])
redis.call('RPUSH', ENDED, ARGV[1])
if not s[1] then return 0 end
local key = waiting(s[1], s[2])
if redis.call('ZREM', key, ARGV[1]) == 1 and redis.call('EXISTS', key) == 0 then
  redis.call('LREM', rotation(s[1]), 1, s[2])
end
pcall(free_slots, s[4], ARGV[1])
if s[3] == '0' then pcall(settle_tokens, s[5], 0, now_ms()) end
-- Counted, so that withdrawn jobs do not count as jobs that workers took (load.lua).
if redis.call('ZREM', ENQUEUED, ARGV[1]) == 1 then redis.call('INCR', Q .. 'withdrawn') end
redis.call('ZREM', DELAYED, ARGV[1])
redis.call('ZREM', RUNNING, ARGV[1])
redis.call('DEL', job)
return 1
