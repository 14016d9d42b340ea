-- Gives the accounts a new revision, and returns it.
-- KEYS: the revision (string)
if redis.call('TYPE', KEYS[1]).ok ~= 'string' then
  redis.call('DEL', KEYS[1])
end
local time = redis.call('TIME')
-- The time is the lower bound, so that a Redis that lost its data, or an older replica, does not repeat a
-- number that nodes have seen.
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local before = tonumber(redis.call('GET', KEYS[1]) or '') or 0
local revision = string.format('%.0f', math.max(before + 1, now))
redis.call('SET', KEYS[1], revision)
return revision
