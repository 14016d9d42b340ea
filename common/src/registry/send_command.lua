-- Leaves a command for a node: 1, or 0 if there is no such live node.
-- KEYS: the node (hash), its commands (list). ARGV: the command, seconds until it is stale, how
-- many may wait
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
if redis.call('TYPE', KEYS[2]).ok ~= 'list' then
  redis.call('DEL', KEYS[2])
end
redis.call('LPUSH', KEYS[2], ARGV[1])
redis.call('LTRIM', KEYS[2], 0, ARGV[3] - 1)
redis.call('EXPIRE', KEYS[2], ARGV[2])
return 1
