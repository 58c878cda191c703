-- What a job holds of its principal's limits until it ends. These are fields of the job's hash, each a list of words:
-- slots: keys of sorted sets, which hold the job's id by the time in ms until which its slot counts unless it is renewed
-- reserved: key, window in ms, bucket, amount; repeated
-- spends: <scope>:<name>=<day limit>/<month limit> in nano-dollars, 0 for none; repeated
local SPENT = 'sluice:q:spent:'
local SLOT_EXTRA_MS = 2000  -- Longer than a lease: another worker may claim the job just when its lease lapses.

-- Sets the time until which the slots of a job count.
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

-- Adds to one counter. Appends to `crossed` if the counter passes 80 or 100 % of its limit.
local function spend(counter, limit, cost, expiry_s, crossed)
  local now_spent = add_to_counter(counter, cost)
  redis.call('EXPIRE', counter, expiry_s)
  limit = tonumber(limit)
  for _, percent in ipairs({80, 100}) do
    local level = limit * percent / 100
    if limit > 0 and now_spent >= level and now_spent - cost < level then crossed[#crossed + 1] = counter .. ' ' .. percent end
  end
end

-- Adds a cost to the counters that `spends` names. Appends to `crossed` those that pass a mark of their budgets.
local function settle_cost(spends, cost, day, month, crossed)
  if tonumber(cost) <= 0 then return end
  for name, day_limit, month_limit in string.gmatch(spends or '', '(%S+)=(%d+)/(%d+)') do
    spend(SPENT .. name .. ':' .. day, day_limit, cost, 3 * 86400, crossed)
    spend(SPENT .. name .. ':' .. month, month_limit, cost, 40 * 86400, crossed)
  end
end
