-- Removes blocks that have ended, unless they have changed since they were read.
-- KEYS: the blocks (hash)
-- ARGV: for each block its field and the value that was read
for i = 1, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then
    redis.call('HDEL', KEYS[1], ARGV[i])
  end
end
return 0
