-- Returns the shared keys of one kind (ticket keys or relay keys), newest first. First adds the proposed key
-- if the newest is too old.
-- KEYS: the keys (list of MILLISECONDS:NAME:SECRET)
-- ARGV: the proposed NAME:SECRET, maximum age of the newest key in ms, number of keys to keep; then the keys
-- that the caller knows, as in the list. They are entered again if Redis has lost all keys.
if redis.call('TYPE', KEYS[1]).ok ~= 'list' then
  redis.call('DEL', KEYS[1]) -- not written by this script
end
if #ARGV > 3 and redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('RPUSH', KEYS[1], unpack(ARGV, 4))
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local newest = redis.call('LINDEX', KEYS[1], 0)
local made = newest and tonumber(string.match(newest, '^(%d+):'))
if not made or made + ARGV[2] <= now then
  redis.call('LPUSH', KEYS[1], string.format('%.0f', now) .. ':' .. ARGV[1])
  redis.call('LTRIM', KEYS[1], 0, ARGV[3] - 1)
end
redis.call('PEXPIRE', KEYS[1], math.floor(ARGV[2] * (ARGV[3] + 1)))
return redis.call('LRANGE', KEYS[1], 0, -1)
