-- Removes a node, unless a later process has its name. Frees its blocks. Marks an order to drain as carried
-- out.
-- KEYS: names of nodes (set), this node (hash), its sessions (hash), its commands (list), its orders (hash),
--       the blocks (hash, see block_step.lua)
-- ARGV: name, incarnation, seconds for which the note that the node has drained is kept
local holder = redis.call('HGET', KEYS[2], 'incarnation')
-- If Redis was away for long, the node's key has expired, but the key of its sessions has not.
if not holder or holder == ARGV[2] then
  redis.call('DEL', KEYS[2], KEYS[3], KEYS[4])
  redis.call('SREM', KEYS[1], ARGV[1])
  local orders = redis.pcall('HMGET', KEYS[5], 'incarnation', 'drain', 'undrain')
  -- An order to end the drain that came too late: the node has drained all the same.
  local ordered = orders[2] or orders[3]
  if orders[1] == ARGV[2] and ordered then
    redis.call('DEL', KEYS[5])
    redis.call('HSET', KEYS[5], 'incarnation', ARGV[2], 'drain', ordered, 'drained', redis.call('TIME')[1])
    redis.call('EXPIRE', KEYS[5], ARGV[3])
  elseif orders.err or not orders[1] or orders[1] == ARGV[2] then
    redis.call('DEL', KEYS[5])
  end

  -- No session is left, so no port is reserved: the blocks need no rest.
  local blocks = redis.pcall('HGETALL', KEYS[6])
  local this = ARGV[1] .. '/' .. ARGV[2]
  for i = 1, #blocks, 2 do
    local owner, incarnation, generation, time, last =
      string.match(blocks[i + 1], '^(%S+) (%S+) (%d+) (%d+) (%S+)$')
    if owner == ARGV[1] and incarnation == ARGV[2] then
      local rest_until = last == this and '0' or time
      redis.call('HSET', KEYS[6], blocks[i], '* * ' .. generation .. ' ' .. rest_until .. ' ' .. last)
    end
  end
end
