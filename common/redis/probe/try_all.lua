-- Runs each command that Sluice sends, on keys that it deletes afterwards, and reports refusals.
-- ARGV: a prefix for this script's own keys, a pub/sub channel, then keys that are only read
-- Returns, per refusal: the command and its key, Redis' message.
-- __init__.py tries the commands that scripts may not run. A test compares both with what the code sends.
local refused = {}

local function try(...)
  local answer = redis.pcall(...)
  if type(answer) == 'table' and answer.err then
    local command, key = ...
    refused[#refused + 1] = command .. ' ' .. (key or '')
    refused[#refused + 1] = answer.err
  end
end

local hash, text, list, set, zset, stream =
  ARGV[1] .. 'hash', ARGV[1] .. 'text', ARGV[1] .. 'list', ARGV[1] .. 'set', ARGV[1] .. 'zset', ARGV[1] .. 'stream'
try('TIME')
try('INFO', 'replication')
try('SET', text, '1', 'PX', '10000')
try('PSETEX', text, '10000', '1')
try('GET', text)
try('MGET', text)
try('INCR', text)
try('INCRBY', text, '1')
try('DECRBY', text, '1')
try('EXISTS', text)
try('EXPIRE', text, '10')
try('PEXPIRE', text, '10000')
try('PEXPIREAT', text, '1')
try('HSET', hash, 'a', '1')
try('HGET', hash, 'a')
try('HMGET', hash, 'a')
try('HGETALL', hash)
try('HVALS', hash)
try('HKEYS', hash)
try('HSCAN', hash, '0')
try('HEXISTS', hash, 'a')
try('HINCRBY', hash, 'a', '1')
try('HDEL', hash, 'b')
try('PTTL', hash)
try('PERSIST', hash)
try('RPUSH', list, '1')
try('LPUSH', list, '1')
try('LLEN', list)
try('LINDEX', list, '0')
try('LRANGE', list, '0', '1')
try('LREM', list, '1', '2')
try('LTRIM', list, '0', '9')
try('LPOP', list)
try('SADD', set, '1')
try('SREM', set, '2')
try('ZADD', zset, '1', 'a')
try('ZCARD', zset)
try('ZRANGE', zset, '0', '0')
try('ZCOUNT', zset, '-inf', '+inf')
try('ZSCORE', zset, 'a')
try('ZRANGEBYSCORE', zset, '-inf', '+inf')
try('ZREVRANK', zset, 'a')
try('ZREVRANGE', zset, '0', '1')
try('ZREM', zset, 'b')
try('ZREMRANGEBYRANK', zset, '5', '6')
try('ZREMRANGEBYSCORE', zset, '5', '6')
try('XADD', stream, '1-1', 'a', '1')
try('XRANGE', stream, '-', '+')
try('XREVRANGE', stream, '+', '-')
try('PUBLISH', ARGV[2], '')
try('SCAN', '0', 'COUNT', '1')
try('UNLINK', text)
try('DEL', hash, text, list, set, zset, stream)
for i = 3, #ARGV do try('EXISTS', ARGV[i]) end
return refused
