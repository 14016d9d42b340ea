-- Counts failed logins. Returns {0, 0}, or {milliseconds to wait, number of the key that says so}.
-- KEYS: the address's failures, then the user's where there is such a name (hashes)
-- ARGV: check, failed or succeeded; delay, longest delay, memory of failures (all ms); free
-- failures for each key
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local wait, by = 0, 0
for i, key in ipairs(KEYS) do
  local left = tonumber(redis.call('HGET', key, 'until') or 0) - now
  if left > wait then
    wait, by = left, i
  end
end
-- A login that was let in beside others, and ends when one of those has closed the door, learns
-- nothing: that many guesses at once are not worth more than one after the other.
if ARGV[1] == 'check' or wait > 0 then
  return { wait, by }
end
if ARGV[1] == 'failed' then
  for i, key in ipairs(KEYS) do
    local over = redis.call('HINCRBY', key, 'failures', 1) - ARGV[4 + i]
    if over > 0 then
      local delay = math.min(ARGV[2] * 2 ^ math.min(over - 1, 40), tonumber(ARGV[3]))
      redis.call('HSET', key, 'until', string.format('%.0f', now + delay))
    end
    redis.call('PEXPIRE', key, ARGV[4])
  end
elseif KEYS[2] then
  -- The address keeps its count: a client with one right password could otherwise guess another
  -- user's for ever.
  redis.call('DEL', KEYS[2])
end
return { 0, 0 }
