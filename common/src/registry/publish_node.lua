-- Enters or refreshes a node: {'joined', generation}, {'superseded'}, or {'taken', name, from, to}
-- when a live node of another name owns some of its ports.
-- KEYS: names of nodes (set), this node (hash; its key ends with the name), its commands (list)
-- ARGV: name, incarnation, generation, '1' if the process has just started, first and last port
--       of the slice, record, lease in ms
local name, incarnation, generation = ARGV[1], ARGV[2], tonumber(ARGV[3])
local from, to = tonumber(ARGV[5]), tonumber(ARGV[6])

local there = redis.pcall('HMGET', KEYS[2], 'incarnation', 'generation')
if there.err then
  redis.call('DEL', KEYS[2]) -- no hash: not ours
  there = {}
end
local theirs = tonumber(there[2]) or 0
if there[1] == incarnation then
  generation = math.max(generation, theirs) -- the answer that told it may have been lost
elseif there[1] then
  if theirs >= generation then
    if ARGV[4] ~= '1' then
      return {'superseded'}
    end
    generation = theirs + 1
  end
end

local function port(text)
  local number = tonumber(text)
  if number and number >= 1 and number <= 65535 then
    return math.floor(number)
  end
end

if redis.call('TYPE', KEYS[1]).ok ~= 'set' then
  redis.call('DEL', KEYS[1])
end
local prefix = string.sub(KEYS[2], 1, -#name - 1)
for _, other in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  if other ~= name then
    local slice = redis.pcall('HMGET', prefix .. other, 'from', 'to')
    local first, last = port(slice[1]), port(slice[2])
    if not first or not last or first > last or #other > 64 or string.find(other, '[^%w%._-]') then
      redis.call('SREM', KEYS[1], other) -- expired, or never a node
    elseif first <= to and from <= last then
      return {'taken', other, first, last}
    end
  end
end

if there[1] ~= incarnation then
  redis.call('DEL', KEYS[3]) -- what waits there was meant for the process before
end
generation = string.format('%.0f', generation)
redis.call('HSET', KEYS[2], 'incarnation', incarnation, 'generation', generation,
  'from', from, 'to', to, 'record', ARGV[7])
redis.call('PEXPIRE', KEYS[2], ARGV[8])
redis.call('SADD', KEYS[1], name)
redis.call('PEXPIRE', KEYS[1], ARGV[8])
return {'joined', generation}
