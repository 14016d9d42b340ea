-- Changes one user or group, if its record is still as it was read.
-- Returns 1: done; 0: the record differs; -1: the record is missing; -2, -3, …: the first, second, …
-- of the required groups does not exist.
-- KEYS: the users or the groups (hash), the generation, the groups (hash)
-- ARGV: 1 name; 2 the expected record, 3 the new record (each empty for "no record"); 4 the expected
--   generation (empty: any); from 5 on, groups that must exist
local now = redis.call('HGET', KEYS[1], ARGV[1]) or ''
-- The request may be a repetition of one whose reply was lost. So if the new record is already there,
-- that is a success, too.
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
