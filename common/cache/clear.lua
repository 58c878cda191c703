-- Removes the entries of a tenant and of a model, some at a time.
-- ARGV: where to go on in the list (0: at its start), tenant or '', model or ''
-- Returns where to go on (0: all were seen), and how many were removed.
local answer, removed = redis.call('HSCAN', ABOUT, ARGV[1], 'COUNT', 500), 0
local flat = answer[2]
for i = 1, #flat, 2 do
  local about = cjson.decode(flat[i + 1])
  if (ARGV[2] == '' or about[2] == ARGV[2]) and (ARGV[3] == '' or about[3] == ARGV[3]) then
    if redis.call('EXISTS', ENTRY .. flat[i]) == 1 then removed = removed + 1 end
    remove(flat[i], flat[i + 1])
  end
end
return {answer[1], removed}
