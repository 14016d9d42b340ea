-- Forgets failures. Returns 1 if they made others wait now.
-- KEYS: the bans, the failures; ARGV: whose they are
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local ends = tonumber(redis.call('HGET', KEYS[2], 'until') or 0)
redis.call('DEL', KEYS[2])
redis.call('ZREM', KEYS[1], ARGV[1])
if ends > now then return 1 else return 0 end
