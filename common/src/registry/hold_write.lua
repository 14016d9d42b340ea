-- Takes or keeps the right to write a path: 1, or 0 if it is another's.
-- KEYS: the lease (string: node, space, what tells this lease from all others)
-- ARGV: this lease's token, the node's name, lease in ms, 'take' or 'keep'
local held = redis.pcall('GET', KEYS[1])
if type(held) == 'string' and held ~= ARGV[1] then
  -- A node asks only for paths that it does not write itself: what stands here under its name
  -- is left from a process before, or from a request whose answer was lost.
  local own = string.sub(held, 1, #ARGV[2] + 1) == ARGV[2] .. ' '
  if ARGV[4] ~= 'take' or not own then
    return 0
  end
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
return 1
