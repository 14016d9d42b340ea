-- Enters or renews a session, unless a limit is reached: 0, or which limit it was (1, 2, 3).
-- KEYS: sessions of the user, of the address, of both (sorted sets by expiry), of the node (hash),
--       the node (hash; its key ends with the name)
-- ARGV: id, process (the node's name, space, incarnation), how long to keep the entries in ms,
--       record, the three limits in the order of the keys (-1 is none)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local process = ARGV[2]
local entry = ARGV[1] .. ' ' .. process

-- Entries outlive their process: a node that comes back finds its sessions counted. Until then
-- they are in nobody's way. The process that asks lives, whatever Redis knows of it.
local living = {[process] = true}
local function lives(other)
  if living[other] == nil then
    local name, incarnation = string.match(other, '^(%S+) (%d+)$')
    local prefix = string.sub(KEYS[5], 1, -#string.match(process, '^%S+') - 1)
    living[other] = name ~= nil and redis.pcall('HGET', prefix .. name, 'incarnation') == incarnation
  end
  return living[other]
end

for i = 1, 3 do
  local swept = redis.pcall('ZREMRANGEBYSCORE', KEYS[i], '-inf', now)
  if type(swept) == 'table' then
    redis.call('DEL', KEYS[i]) -- no sorted set: not ours
  end
  local limit = tonumber(ARGV[4 + i])
  -- Who lives matters only where the dead would make the difference.
  if limit >= 0 and redis.call('ZCARD', KEYS[i]) >= limit then
    local others = 0
    for _, other in ipairs(redis.call('ZRANGE', KEYS[i], 0, -1)) do
      -- A request may arrive twice: the session is not in its own way.
      if other ~= entry and lives(string.sub(other, 18)) then
        others = others + 1
      end
    end
    if others >= limit then
      return i
    end
  end
end
local expiry = string.format('%.0f', now + ARGV[3])
for i = 1, 3 do
  redis.call('ZADD', KEYS[i], expiry, entry)
  redis.call('PEXPIRE', KEYS[i], ARGV[3])
end
local set = redis.pcall('HSET', KEYS[4], ARGV[1], ARGV[4])
if type(set) == 'table' then
  redis.call('DEL', KEYS[4]) -- no hash: not ours
  redis.call('HSET', KEYS[4], ARGV[1], ARGV[4])
end
redis.call('PEXPIRE', KEYS[4], ARGV[3])
return 0
