-- Enters or renews a session, unless a limit is reached. Returns 0, or the number of the reached limit (1,
-- 2, 3).
-- KEYS: sessions of the user, of the address, of both (sorted sets by expiry time); sessions of the node
--       (hash); the node (hash; the key ends with the name)
-- ARGV: id; process (NAME INCARNATION); time in ms for which the entries are kept; record; the three limits
--       in the order of the keys (-1: no limit)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local process = ARGV[2]
local entry = ARGV[1] .. ' ' .. process

-- Entries survive the expiry of their node, so that the sessions of a node that comes back are still
-- entered. They count only while Redis has the node's process. The process that sends this request is
-- alive, even if its entry has expired.
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
    redis.call('DEL', KEYS[i]) -- no sorted set: not written by a node
  end
  local limit = tonumber(ARGV[4 + i])
  -- Dead processes are looked up only if the limit would be reached with them.
  if limit >= 0 and redis.call('ZCARD', KEYS[i]) >= limit then
    local others = 0
    for _, other in ipairs(redis.call('ZRANGE', KEYS[i], 0, -1)) do
      -- A request may arrive twice: the session's own entry does not count. An entry is a 16-digit id, a
      -- space and the process.
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
  redis.call('DEL', KEYS[4]) -- no hash: not written by a node
  redis.call('HSET', KEYS[4], ARGV[1], ARGV[4])
end
redis.call('PEXPIRE', KEYS[4], ARGV[3])
return 0
