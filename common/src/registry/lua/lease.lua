-- The common start of hold_write.lua and release_write.lua: the form of a write lease in Redis.
--
-- The lease of PATH is a string at `write:PATH`: `2:UNTIL:NUMBER:KIND TOKEN`.
--   UNTIL: expiry time of the lease (Unix ms). The key lives longer: the holder may renew an expired lease
--     as long as no other session has taken the path.
--   NUMBER: rises with each take in the cluster.
--   KIND: `f` (a file) or `t` (a path with all paths below it), followed by `?` if the lease was taken
--     within one lease after Redis lost data; or `r`: released.
--   TOKEN: `NAME INCARNATION PLACE GRANT SESSION` of the holder. None contains a space; PLACE is `-` if
--     unknown.
-- A value of another form was written by another version. It counts as a lease that lasts as long as its
-- key.
--
-- KEYS: the epoch (hash); all leased paths (sorted set by name); paths leased as trees (sorted set by
--       name); then the key of each path
-- ARGV: 1 step ('take', 'keep', 'look', 'give' or 'drop'), 2 first part of the leases' keys, 3 TOKEN, 4
--       lease in ms, 5 time in ms for which a lease is remembered, 6 epoch that the node knows (empty:
--       none), 7 random name for a new epoch, 8 '1' to compare the server with that of the epoch, 9 and 10
--       epoch and number of the lease (empty and 0: Redis never granted it), 11 '1' if the lease was kept
--       within the last lease, 12 '1' if a lock on the storage protects the file, 13 the kind of each path
local step, prefix, token = ARGV[1], ARGV[2], ARGV[3]
local lease_ms, remembered_ms = tonumber(ARGV[4]), ARGV[5]
local known, fresh = ARGV[6], ARGV[7]
local own_epoch, own_number = ARGV[9], tonumber(ARGV[10])
local is_recent, has_lock, kinds = ARGV[11] == '1', ARGV[12] == '1', ARGV[13]

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function whole(number)
  return string.format('%.0f', number)
end

-- An epoch ends when Redis loses data: when its key is gone, or when the server is another process, which
-- may have less data than the one before. A node that knows another epoch proves that there was a cluster.
-- For the duration of a lease, nodes may then hold leases that Redis does not know.
local state = redis.pcall('HMGET', KEYS[1], 'epoch', 'created', 'doubt', 'server', 'number')
if state.err then
  redis.call('DEL', KEYS[1]) -- no hash: not written by a node
  state = {}
end
local epoch, created, is_doubtful = state[1], tonumber(state[2] or ''), state[3] == '1'
local server = ''
if ARGV[8] == '1' then
  local info = redis.pcall('INFO', 'server')
  server = type(info) == 'string' and string.match(info, 'run_id:(%w+)') or ''
end
local is_other_server = server ~= '' and state[4] and state[4] ~= '' and state[4] ~= server
if not epoch or not created or is_other_server then
  is_doubtful = known ~= '' or is_other_server
  epoch, created = fresh, now
  -- Higher than all numbers of earlier epochs: no cluster takes 1000 leases per millisecond.
  local number = math.max(tonumber(state[5] or '') or 0, now * 1000)
  redis.call('HSET', KEYS[1], 'epoch', epoch, 'created', whole(created), 'doubt', is_doubtful and 1 or 0,
    'server', server, 'number', whole(number))
  redis.call('PEXPIRE', KEYS[1], remembered_ms)
elseif known ~= '' and known ~= epoch and not is_doubtful then
  is_doubtful = true
  redis.call('HSET', KEYS[1], 'doubt', 1)
end
if server ~= '' and (not state[4] or state[4] == '') then
  redis.call('HSET', KEYS[1], 'server', server)
end
local is_young = math.abs(now - created) < lease_ms
local is_uncertain = is_doubtful and is_young

-- Returns the lease at a key; nil if the path is not leased.
local function read(key)
  local value = redis.pcall('GET', key)
  if type(value) ~= 'string' then
    return nil -- missing, or not written by a node
  end
  local ends, number, kind, holder = string.match(value, '^2:(%d+):(%d+):(%S+) (.*)$')
  if not holder then
    return {is_live = true, number = math.huge, kind = 'f', holder = value}
  end
  return {
    is_live = kind ~= 'r' and tonumber(ends) > now,
    is_doubtful = #kind > 1,
    number = tonumber(number),
    kind = string.sub(kind, 1, 1),
    holder = holder,
  }
end

-- Returns true if the holder of a lease is this process, or an earlier process at the same place, which is
-- dead. (A node takes only paths that are not leased in its own table. So a lease of its own is about to be
-- released, or the answer to the request that took it was lost.)
local function is_own(lease)
  local name, incarnation, place = string.match(token, '^(%S+) (%S+) (%S+) ')
  local its_name, its_incarnation, its_place = string.match(lease.holder, '^(%S+) (%S+) (%S+) ')
  return its_name == name and (its_incarnation == incarnation or place ~= '-' and its_place == place)
end

-- Returns true if the holder may enter its lease again, although Redis has lost or replaced it. `found` is
-- the lease that Redis has for the path. There are two cases:
-- * The lease was kept within the last lease, before Redis lost data. It takes precedence over leases that
--   were taken in doubt.
-- * A lock on the storage proves that no other session wrote the file, and no other session holds a lease
--   now.
local function may_return(found)
  if is_recent and own_epoch ~= '' and own_epoch ~= epoch
    and (not found or found.is_doubtful or found.number < own_number) then
    return true
  end
  return has_lock and not (found and found.is_live)
end

local function path_of(key)
  return string.sub(key, #prefix + 1)
end

-- Runs a command on a sorted set. Deletes a value of another type first, which was not written by a node.
local function on_set(command, key, ...)
  local answer = redis.pcall(command, key, ...)
  if type(answer) == 'table' and answer.err then
    redis.call('DEL', key)
    answer = redis.call(command, key, ...)
  end
  return answer
end

local function forget(path)
  redis.call('ZREM', KEYS[2], path)
  redis.call('ZREM', KEYS[3], path)
end

