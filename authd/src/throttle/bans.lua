-- Returns the bans in effect: member and end (Unix time in ms) in turn.
-- KEYS: the bans (sorted set)
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
return redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. string.format('%.0f', now), '+inf', 'WITHSCORES')
