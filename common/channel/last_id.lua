-- Returns the last id of a log, or false where there is no state.
-- KEYS: state
local pos = redis.call('HGET', KEYS[1], 'pos')
if not pos then return false end
local _, _, last = split(pos)
return last
