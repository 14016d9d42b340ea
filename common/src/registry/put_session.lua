-- Enters or refreshes a session, unless a limit is reached: 0, or which limit it was (1, 2, 3).
-- KEYS: sessions of the user, of the address, of both (sorted sets by expiry), of the node (hash)
-- ARGV: id, lease in ms, record, the three limits in the order of the keys (-1 is none)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for i = 1, 3 do
  local swept = redis.pcall('ZREMRANGEBYSCORE', KEYS[i], '-inf', now)
  if type(swept) == 'table' then
    redis.call('DEL', KEYS[i]) -- no sorted set: not ours
  end
  local limit = tonumber(ARGV[3 + i])
  if limit >= 0 then
    local others = redis.call('ZCARD', KEYS[i])
    -- A request may arrive twice: the session is not in its own way.
    if redis.call('ZSCORE', KEYS[i], ARGV[1]) then
      others = others - 1
    end
    if others >= limit then
      return i
    end
  end
end
local expiry = string.format('%.0f', now + ARGV[2])
for i = 1, 3 do
  redis.call('ZADD', KEYS[i], expiry, ARGV[1])
  redis.call('PEXPIRE', KEYS[i], ARGV[2])
end
local set = redis.pcall('HSET', KEYS[4], ARGV[1], ARGV[3])
if type(set) == 'table' then
  redis.call('DEL', KEYS[4]) -- no hash: not ours
  redis.call('HSET', KEYS[4], ARGV[1], ARGV[3])
end
redis.call('PEXPIRE', KEYS[4], ARGV[2])
return 0
