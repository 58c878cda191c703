-- What a job holds of its principal's limits until it ends: fields of its hash, each a list of words.
-- slots: keys of sorted sets, the job's id by the time in ms until which its place counts without word of it
-- reserved: key, window in ms, bucket, amount; in turn
-- spends: <scope>:<name>=<day limit>/<month limit> in nano-dollars, 0 for none
local SPENT = 'sluice:q:spent:'
local SLOT_EXTRA_MS = 2000  -- Over a lease: another worker may take the job just when its lease lapses.

-- Dates the places of a job anew.
local function hold_slots(slots, id, until_ms)
  for key in string.gmatch(slots or '', '%S+') do redis.call('ZADD', key, int(until_ms), id) end
end

local function free_slots(slots, id)
  for key in string.gmatch(slots or '', '%S+') do redis.call('ZREM', key, id) end
end

local function settle_tokens(reserved, tokens, now)
  for key, window_ms, bucket, amount in string.gmatch(reserved or '', '(%S+) (%d+) (%d+) (%d+)') do
    settle_window(key, tonumber(window_ms), now, bucket, tonumber(amount), tokens)
  end
end

-- Adds to one counter; notes in `crossed` where that takes it past 80 or 100 % of its limit.
local function spend(counter, limit, cost, expiry_s, crossed)
  local now_spent = add_to_counter(counter, cost)
  redis.call('EXPIRE', counter, expiry_s)
  limit = tonumber(limit)
  for _, percent in ipairs({80, 100}) do
    local level = limit * percent / 100
    if limit > 0 and now_spent >= level and now_spent - cost < level then crossed[#crossed + 1] = counter .. ' ' .. percent end
  end
end

-- Adds a cost to the counters of all that `spends` names; notes those that crossed a mark of their budgets.
local function settle_cost(spends, cost, day, month, crossed)
  if tonumber(cost) <= 0 then return end
  for name, day_limit, month_limit in string.gmatch(spends or '', '(%S+)=(%d+)/(%d+)') do
    spend(SPENT .. name .. ':' .. day, day_limit, cost, 3 * 86400, crossed)
    spend(SPENT .. name .. ':' .. month, month_limit, cost, 40 * 86400, crossed)
  end
end
