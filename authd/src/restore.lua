-- Puts a staged backup in place, in one step.
-- Returns {1, removed}: done, now or by an earlier call whose reply was lost. {0, name, …}: these users and
-- groups exist with other properties, and nothing has changed. {-1}: the staged backup is not complete.
-- KEYS: 1 users, 2 groups, 3 overrides, 4 blocks (hashes); 5 to 8 the same, staged; 9 the marker;
--   10 the generation of users and groups
-- ARGV: 1 'replace' or 'add'; 2 to 5 the number of staged users, groups, overrides, blocks; 6 the lifetime
--   of the marker in seconds
local marker = redis.call('GET', KEYS[9]) or ''
if string.sub(marker, 1, 5) == 'done ' then return {1, tonumber(string.sub(marker, 6))} end
if marker ~= 'staged' then return {-1} end
for i = 1, 4 do
  if redis.call('HLEN', KEYS[4 + i]) ~= tonumber(ARGV[1 + i]) then return {-1} end
end
local removed = 0
if ARGV[1] == 'replace' then
  for i = 1, 4 do
    for _, name in ipairs(redis.call('HKEYS', KEYS[i])) do
      if redis.call('HEXISTS', KEYS[4 + i], name) == 0 then removed = removed + 1 end
    end
    redis.call('DEL', KEYS[i])
    if redis.call('EXISTS', KEYS[4 + i]) == 1 then
      redis.call('RENAME', KEYS[4 + i], KEYS[i])
      redis.call('PERSIST', KEYS[i])
    end
  end
else
  local conflicts = {0}
  for i = 1, 2 do
    local entries = redis.call('HGETALL', KEYS[4 + i])
    for at = 1, #entries, 2 do
      local there = redis.call('HGET', KEYS[i], entries[at])
      if there and there ~= entries[at + 1] then
        conflicts[#conflicts + 1] = (i == 1 and 'user ' or 'group ') .. entries[at]
      end
    end
  end
  if #conflicts > 1 then return conflicts end
  -- An override or a block that is there already forbids the same, and stays.
  for i = 1, 4 do
    local entries = redis.call('HGETALL', KEYS[4 + i])
    for at = 1, #entries, 2 do redis.call('HSETNX', KEYS[i], entries[at], entries[at + 1]) end
  end
end
redis.call('SET', KEYS[9], 'done ' .. removed, 'EX', ARGV[6])
redis.call('INCR', KEYS[10])
return {1, removed}
