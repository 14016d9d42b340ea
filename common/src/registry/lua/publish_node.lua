-- Enters or renews a node. Follows block_step.lua. Returns one of
--   {'joined', SESSIONS, ALIVE, REVISION, BLOCKS, ORDER...}
--   {'named', record, LEFT}: another process holds the node's name
--   {'taken', SESSIONS, ALIVE, name, from, to}: a live node of another name owns some of the node's ports
--   {'layout', SESSIONS, ALIVE, name, from, to, number of ports of a block}: a live node leases blocks of
--     another range or size
--   {'free'}: no other process holds the name (only after 'look').
-- SESSIONS: number of sessions that Redis has of the node. ALIVE: 1 if the node's entry had not expired,
-- otherwise 0. LEFT: remaining time of the other process's lease in ms. REVISION: that of the accounts; 0
-- before authd has set it. BLOCKS: Redis's time (Unix ms), and of a node that leases blocks, the words of
-- block_step.lua. ORDER: the name of an order to this process, 'drain', 'undrain' or 'end:ID', or
-- 'why:ID REASON'.
-- KEYS: names of nodes (set), this node (hash; the key ends with the name), its commands (list; the key
--       ends with the name), its sessions (hash), the revision of the accounts (string), the node's orders
--       (hash), the blocks (hash)
-- ARGV: 1 name; 2 incarnation; 3 place (see Registry::join; may be empty); 4 'keep', 'start', 'late' or
--       'look' (changes nothing); 5, 6 first and last port of the slice, or of the range whose blocks are
--       leased; 7 record; 8 lease in ms; 9 time in ms for which the sessions are kept; 10 '1' if the node
--       drains; 11 number of ports of a block ('0': the node has a slice). A node that leases blocks adds:
--       12 rest and 13 settle in ms; 14 '1' if registry_away is refuse; 15 '1' if its lease has ended by its
--       own clock; 16 Redis's time when it sent the request, as far as it knows (may be empty); 17 claimed
--       and 18 released blocks, each `FROM-TO:GENERATION`, separated by spaces.
local name, incarnation, place, step = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local from, to = tonumber(ARGV[5]), tonumber(ARGV[6])
local is_draining, block_ports = ARGV[10] == '1', tonumber(ARGV[11])
local is_leased = block_ports > 0

local entry = redis.pcall('HMGET', KEYS[2], 'incarnation', 'place', 'record')
if entry.err then
  redis.call('DEL', KEYS[2]) -- no hash: not written by a node
  entry = {}
end
local before -- an earlier process of this node, which is dead
if entry[1] and entry[1] ~= incarnation then
  -- A lease has an expiry time. A key without one was not written by a node.
  local left = redis.call('PTTL', KEYS[2])
  local is_same_place = step ~= 'keep' and place ~= '' and entry[2] == place
  if left >= 0 and not is_same_place then
    if step == 'keep' and is_leased then
      -- This process had joined before. If Redis has lost its data since, some process may use blocks.
      local blocks = redis.pcall('HGET', KEYS[7], 'table')
      local created = type(blocks) == 'string' and string.match(blocks, '^%d+')
      if created then
        redis.call('HSET', KEYS[7], 'table', created .. ' 1')
      end
    end
    return {'named', entry[3] or '', tostring(left)}
  end
  before = is_same_place and entry[1] or nil
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

-- When the process of a record started, in Unix seconds.
local function since(record)
  local is_json, node = pcall(cjson.decode, record)
  return is_json and type(node) == 'table' and tonumber(node.since) or math.huge
end

-- Returns true if this process serves clients already and `other` started later: it came first only because
-- Redis was away or has lost its data. It learns at its own next refresh that it must leave.
local function is_newcomer(other, record)
  local ours, theirs = since(ARGV[7]), since(record)
  return step ~= 'start' and (theirs > ours or theirs == ours and other > name)
end

if redis.call('TYPE', KEYS[1]).ok ~= 'set' then
  redis.call('DEL', KEYS[1])
end
local prefix = string.sub(KEYS[2], 1, -#name - 1)
local others, conflict = {}, nil
for _, other in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  if other ~= name then
    local found = redis.pcall('HMGET', prefix .. other, 'from', 'to', 'incarnation', 'block_ports',
      'draining', 'range_from', 'range_to', 'record')
    local first, last, ports = port(found[1]), port(found[2]), tonumber(found[4] or '') or 0
    if not first or not last or first > last or #other > 64 or string.find(other, '[^%w%._-]') then
      redis.call('SREM', KEYS[1], other) -- expired, or not written by a node
    else
      others[#others + 1] = {
        name = other, incarnation = found[3] or '', from = first, to = last,
        is_leased = ports > 0, is_draining = found[5] == '1',
      }
      if ports == 0 and not is_leased and first <= to and from <= last
        and not is_newcomer(other, found[8])
      then
        conflict = conflict or {'taken', other, tostring(first), tostring(last)}
      elseif ports > 0 and is_leased
        and (ports ~= block_ports or tonumber(found[6]) ~= from or tonumber(found[7]) ~= to)
      then
        conflict = conflict or {'layout', other, found[6] or '', found[7] or '', tostring(ports)}
      end
    end
  end
end
if conflict then
  if step ~= 'start' then
    renew() -- The node is not a member, but its sessions count.
  end
  table.insert(conflict, 2, tostring(sessions))
  table.insert(conflict, 3, tostring(alive))
  return conflict
end

-- Previous versions take `from` and `to` for a slice that no other node may overlap, and take a node without
-- them for dead. No passive range contains port 1.
renew('from', is_leased and 1 or from, 'to', is_leased and 1 or to, 'record', ARGV[7], 'lease', ARGV[8],
  'draining', is_draining and '1' or '0', 'block_ports', block_ports, 'range_from', from, 'range_to', to)
redis.call('SADD', KEYS[1], name)
redis.call('PEXPIRE', KEYS[1], ARGV[8])

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local blocks = string.format('%.0f', now)
if is_leased then
  local function by_field(words)
    local generations = {}
    for field, generation in string.gmatch(words, '(%S+):(%d+)') do
      generations[field] = tonumber(generation)
    end
    return generations
  end
  local rest, settle, asked_at = tonumber(ARGV[12]), tonumber(ARGV[13]), tonumber(ARGV[16])
  local words, rich = block_step(KEYS[7], {
    name = name, incarnation = incarnation, place = place, before = before, from = from, to = to,
    size = block_ports, is_forgotten = step == 'keep' and alive == 0, is_draining = is_draining,
    is_strict = ARGV[14] == '1', has_lapsed = ARGV[15] == '1',
    -- Another node may use a block that this process has released `settle` after the release.
    is_late = asked_at and now - asked_at > math.min(settle, rest) - 500 or false,
    claims = by_field(ARGV[17]), released = by_field(ARGV[18]),
  }, others, {
    now = now, rest = rest, settle = settle, lease = tonumber(ARGV[8]),
    kept = string.format('%.0f', ARGV[9] + rest),
  })
  blocks = blocks .. ' ' .. table.concat(words, ' ')
  if alive == 0 then
    -- The node is new: nodes that own more than their share now give some blocks up at once.
    local commands = string.sub(KEYS[3], 1, -#name - 1)
    for _, other in ipairs(rich) do
      redis.pcall('RPUSH', commands .. other, '{"command":"refresh"}')
      redis.pcall('EXPIRE', commands .. other, 60)
    end
  end
end

local revision = redis.pcall('GET', KEYS[5])
local reply = {
  'joined', tostring(sessions), tostring(alive), type(revision) == 'string' and revision or '0', blocks,
}
local orders = redis.pcall('HGETALL', KEYS[6])
local mine = {}
for i = 1, #orders, 2 do
  mine[orders[i]] = orders[i + 1]
end
if orders.err or next(mine) and mine.incarnation ~= incarnation then
  redis.call('DEL', KEYS[6]) -- no hash, or orders for an earlier process
  mine = {}
end
for order, value in pairs(mine) do
  if order == 'drain' or order == 'undrain' or string.sub(order, 1, 4) == 'end:' then
    reply[#reply + 1] = order
  elseif string.sub(order, 1, 4) == 'why:' then
    reply[#reply + 1] = order .. ' ' .. value
  end
end
return reply
