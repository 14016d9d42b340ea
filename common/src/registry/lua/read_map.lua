-- Reads the map of the passive ports. Returns {Redis's time (Unix ms), nodes, blocks}.
--   nodes: for each live node its name, incarnation, record, first and last port of its slice, number of
--     ports of a block ('0': the node has a slice), lease in ms ('': a previous version)
--   blocks: fields and values of the table of blocks (see block_step.lua)
-- KEYS: names of nodes (set), the blocks (hash)
-- ARGV: first part of the keys of nodes
local time = redis.call('TIME')
local names = redis.pcall('SMEMBERS', KEYS[1])
local nodes = {}
for _, name in ipairs(names.err and {} or names) do
  local found = redis.pcall('HMGET', ARGV[1] .. name, 'incarnation', 'record', 'from', 'to', 'block_ports',
    'lease')
  if not found.err and found[1] and found[2] then
    nodes[#nodes + 1] = name
    for i, missing in ipairs({'', '', '', '', '0', ''}) do
      nodes[#nodes + 1] = found[i] or missing
    end
  end
end
local blocks = redis.pcall('HGETALL', KEYS[2])
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
return {now, nodes, blocks.err and {} or blocks}
