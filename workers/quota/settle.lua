-- Releases what a call has reserved: its concurrency slot, and the tokens that it did not use.
-- ARGV: id, key of the slots or '', key of the tokens or '', window in ms, bucket, tokens reserved, tokens used
if ARGV[2] ~= '' then redis.call('ZREM', ARGV[2], ARGV[1]) end
if ARGV[3] ~= '' then
  settle_window(ARGV[3], tonumber(ARGV[4]), now_ms(), ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7]))
end
return 1
