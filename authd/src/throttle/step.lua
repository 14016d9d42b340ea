-- Counts failed logins. Returns {milliseconds to wait, whose failures say so (0: nobody's, 1: the
-- address's, 2: the user's), milliseconds that others wait from now on for the address, for the user}.
-- KEYS: the bans (sorted set), the address's failures (hash), and where there is such a name the
-- user's failures (hash) and known addresses (sorted set)
-- ARGV: check, failed or succeeded; delay, longest delay, memory of failures (all ms); free failures
-- of an address, of a user; how long an address is known (ms), how many are; the address, the user
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local counts = { { key = KEYS[2], free = ARGV[5], ban = 'address:' .. ARGV[9] } }
-- From where the user logged in of late, strangers' failures do not count, nor does a success undo
-- them.
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
-- A login that was let in beside others, and ends when one of those has closed the door, learns
-- nothing: that many guesses at once are not worth more than one after the other.
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
      -- The list is for people; the rest of a longer one still holds.
      redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -100001)
      -- None lasts longer than this from its beginning.
      redis.call('PEXPIRE', KEYS[1], ARGV[3])
      began[i] = delay
    end
    redis.call('PEXPIRE', count.key, ARGV[4])
  end
elseif KEYS[3] then
  -- The address keeps its count: a client with one right password could otherwise guess another
  -- user's for ever.
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
