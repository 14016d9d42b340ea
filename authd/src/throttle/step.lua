-- Carries out a step of a login attempt.
-- Returns {
--   remaining time of the ban in effect (ms),
--   its kind (0: no ban, 1: of the address, 2: of the user),
--   duration of the ban of the address that begins with this step (ms; 0: none),
--   the same for the ban of the user }
-- KEYS: the bans (sorted set), the address's failures (hash); for a valid user name also the user's
--   failures (hash) and the user's known addresses (sorted set)
-- ARGV: 1 'check', 'failed' or 'succeeded'; 2 delay, 3 maximum delay, 4 time after which failures are
--   forgotten (all ms); free failures 5 of an address, 6 of a user; 7 time for which an address stays
--   known (ms), 8 maximum number of known addresses; 9 the address, 10 the user
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local counts = { { key = KEYS[2], free = ARGV[5], ban = 'address:' .. ARGV[9] } }
-- From a known address, the user's failures neither ban the login nor are they counted, and a success
-- does not reset them.
if KEYS[3] and (tonumber(redis.call('ZSCORE', KEYS[4], ARGV[9]) or 0)) + ARGV[7] <= now then
  counts[2] = { key = KEYS[3], free = ARGV[6], ban = 'user:' .. ARGV[10] }
end
local wait, by = 0, 0
for i, count in ipairs(counts) do
  local left = tonumber(redis.call('HGET', count.key, 'until') or 0) - now
  if left > wait then
    wait, by = left, i
  end
end
-- A ban takes precedence over the result of the login. So of many concurrent attempts, those that end
-- after the ban began learn nothing: concurrent guesses have no advantage over successive ones.
if ARGV[1] == 'check' or wait > 0 then
  return { wait, by, 0, 0 }
end
local began = { 0, 0 }
if ARGV[1] == 'failed' then
  for i, count in ipairs(counts) do
    local over = redis.call('HINCRBY', count.key, 'failures', 1) - count.free
    if over > 0 then
      local delay = math.min(ARGV[2] * 2 ^ math.min(over - 1, 40), tonumber(ARGV[3]))
      local ends = string.format('%.0f', now + delay)
      redis.call('HSET', count.key, 'until', ends)
      redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
      redis.call('ZADD', KEYS[1], ends, count.ban)
      -- The list of bans is only for administrators, at most 100,000 entries. Bans that are not on it
      -- still apply.
      redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -100001)
      -- No ban lasts longer than the maximum delay.
      redis.call('PEXPIRE', KEYS[1], ARGV[3])
      began[i] = delay
    end
    redis.call('PEXPIRE', count.key, ARGV[4])
  end
elseif KEYS[3] then
  -- A success does not reset the address's failures. Otherwise a client with one right password could
  -- guess the passwords of other users without limit.
  if counts[2] then
    redis.call('DEL', KEYS[3])
    redis.call('ZREM', KEYS[1], counts[2].ban)
  end
  redis.call('ZADD', KEYS[4], now, ARGV[9])
  redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', now - ARGV[7])
  redis.call('ZREMRANGEBYRANK', KEYS[4], 0, -1 - ARGV[8])
  redis.call('PEXPIRE', KEYS[4], ARGV[7])
end
return { 0, 0, began[1], began[2] }
