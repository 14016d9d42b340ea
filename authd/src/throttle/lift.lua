-- Forgets the failures of a user or an address. Returns 1 if a ban was in effect, otherwise 0.
-- KEYS: the bans (sorted set), the failures (hash)
-- ARGV: the member of the sorted set
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local ends = tonumber(redis.call('HGET', KEYS[2], 'until') or 0)
redis.call('DEL', KEYS[2])
redis.call('ZREM', KEYS[1], ARGV[1])
if ends > now then return 1 else return 0 end
