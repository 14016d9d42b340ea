-- Changes one user or group, if it is as it was when it was read. Returns 1 when that is done, 0 if
-- something else is there, -1 if nothing is, and -1 - i if the i-th needed group does not exist.
-- KEYS: the users or the groups, the generation, the groups
-- ARGV: name; what must be there, and what is to be there (empty: nothing); the generation that must
-- be (empty: any); the groups that must be
local now = redis.call('HGET', KEYS[1], ARGV[1]) or ''
-- A step whose answer was lost may be taken again: that what is to be there is there already is
-- success too.
if now == ARGV[3] and now ~= '' then return 1 end
if now ~= ARGV[2] then
  if now == '' then return -1 else return 0 end
end
if ARGV[4] ~= '' and (redis.call('GET', KEYS[2]) or '0') ~= ARGV[4] then return 0 end
for i = 5, #ARGV do
  if redis.call('HEXISTS', KEYS[3], ARGV[i]) == 0 then return 3 - i end
end
if ARGV[3] == '' then redis.call('HDEL', KEYS[1], ARGV[1])
else redis.call('HSET', KEYS[1], ARGV[1], ARGV[3]) end
redis.call('INCR', KEYS[2])
return 1
