-- Lists entries that have not expired, some at a time.
-- ARGV: where to go on in the list (0: at its start)
-- Returns where to go on (0: all were seen), and for each entry: its key, what is recorded about it (JSON, see put.lua).
local answer, entries, now = redis.call('HSCAN', ABOUT, ARGV[1], 'COUNT', 500), {}, now_ms()
local flat = answer[2]
for i = 1, #flat, 2 do
  if tonumber(redis.call('ZSCORE', BY_EXPIRY, flat[i]) or 0) > now then
    entries[#entries + 1] = {flat[i], flat[i + 1]}
  end
end
return {answer[1], entries}
