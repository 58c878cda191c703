-- Put before every script of ours.

-- Redis' own clock, in ms.
local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- A number as Redis takes it: no exponent, no fraction.
local function int(number) return string.format('%d', number) end
