-- Enters or renews a node. Returns one of
--   {'joined', SESSIONS, ALIVE, REVISION, ORDER...}
--   {'named', record, LEFT}: another process holds the node's name
--   {'taken', SESSIONS, ALIVE, name, from, to}: a live node of another name owns some of the node's ports
--   {'free'}: no other process holds the name (only after 'look').
-- SESSIONS: number of sessions that Redis has of the node. ALIVE: 1 if the node's entry had not expired,
-- otherwise 0. LEFT: remaining time of the other process's lease in ms. REVISION: that of the accounts; 0
-- before authd has set it. ORDER: the name of an order to this process, 'drain' or 'end:ID'.
-- KEYS: names of nodes (set), this node (hash; the key ends with the name), its commands (list), its
--       sessions (hash), the revision of the accounts (string), the node's orders (hash)
-- ARGV: name; incarnation; place (see Registry::join; may be empty); 'keep', 'start', 'late' or 'look'
--       (changes nothing); first and last port of the slice; record; lease in ms; time in ms for which the
--       sessions are kept
local name, incarnation, place, step = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local from, to = tonumber(ARGV[5]), tonumber(ARGV[6])

local entry = redis.pcall('HMGET', KEYS[2], 'incarnation', 'place', 'record')
if entry.err then
  redis.call('DEL', KEYS[2]) -- no hash: not written by a node
  entry = {}
end
if entry[1] and entry[1] ~= incarnation then
  -- A lease has an expiry time. A key without one was not written by a node.
  local left = redis.call('PTTL', KEYS[2])
  local is_dead = left < 0 or (step ~= 'keep' and place ~= '' and entry[2] == place)
  if not is_dead then
    return {'named', entry[3] or '', tostring(left)}
  end
end
if step == 'look' then
  return {'free'}
end

local alive = entry[1] == incarnation and 1 or 0
local sessions = redis.pcall('HLEN', KEYS[4])
if type(sessions) ~= 'number' then
  redis.call('DEL', KEYS[4]) -- no hash: not written by a node
  sessions = 0
end

-- Renews the node's entry. Its sessions count as long as this entry exists, so they need no requests of
-- their own.
local function renew(...)
  if alive == 0 then
    redis.call('DEL', KEYS[3]) -- these commands were for an earlier process
  end
  redis.call('HSET', KEYS[2], 'incarnation', incarnation, 'place', place, ...)
  redis.call('PEXPIRE', KEYS[2], ARGV[8])
  redis.call('PEXPIRE', KEYS[4], ARGV[9])
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
      redis.call('SREM', KEYS[1], other) -- expired, or not written by a node
    elseif first <= to and from <= last then
      if step ~= 'start' then
        renew() -- The node is not a member, but its sessions count.
      end
      return {'taken', tostring(sessions), tostring(alive), other, tostring(first), tostring(last)}
    end
  end
end

renew('from', from, 'to', to, 'record', ARGV[7])
redis.call('SADD', KEYS[1], name)
redis.call('PEXPIRE', KEYS[1], ARGV[8])
local revision = redis.pcall('GET', KEYS[5])
local reply = {'joined', tostring(sessions), tostring(alive), type(revision) == 'string' and revision or '0'}
local orders = redis.pcall('HGETALL', KEYS[6])
local mine = {}
for i = 1, #orders, 2 do
  mine[orders[i]] = orders[i + 1]
end
if orders.err or next(mine) and mine.incarnation ~= incarnation then
  redis.call('DEL', KEYS[6]) -- no hash, or orders for an earlier process
  mine = {}
end
for order in pairs(mine) do
  if order == 'drain' or string.sub(order, 1, 4) == 'end:' then
    reply[#reply + 1] = order
  end
end
return reply
