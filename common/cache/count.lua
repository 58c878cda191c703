-- Counts the entries by tenant and model, some at a time.
-- ARGV: where to go on in the list (0: at its start)
-- Returns where to go on (0: all were seen), and for each entry that has not expired: tenant, model, bytes.
local answer, found, now = redis.call('HSCAN', ABOUT, ARGV[1], 'COUNT', 500), {}, now_ms()
local flat = answer[2]
for i = 1, #flat, 2 do
  if tonumber(redis.call('ZSCORE', BY_EXPIRY, flat[i]) or 0) > now then
    local about = cjson.decode(flat[i + 1])
    found[#found + 1] = {about[2], about[3], about[1]}
  end
end
return {answer[1], found}
