-- Put before every script of Sluice.

-- Redis' own clock, in ms.
local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- Formats a number for Redis: without exponent and fraction.
local function int(number) return string.format('%d', number) end
