-- Takes a node out, unless a later process has its name.
-- KEYS: names of nodes (set), this node (hash), its sessions (hash), its commands (list)
-- ARGV: name, incarnation
local there = redis.call('HGET', KEYS[2], 'incarnation')
-- It may have been away for so long that the node expired; its sessions have not.
if not there or there == ARGV[2] then
  redis.call('DEL', KEYS[2], KEYS[3], KEYS[4])
  redis.call('SREM', KEYS[1], ARGV[1])
end
