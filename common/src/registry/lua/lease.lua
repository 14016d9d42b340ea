-- The common start of hold_write.lua and release_write.lua: what a write lease in Redis is.
--
-- The lease of PATH is a string at `write:PATH`: `2:UNTIL:NUMBER:KIND TOKEN`.
--   UNTIL: the lease expires at this time (Unix ms). The key stays longer: until another session takes the path,
--     the holder may renew an expired lease.
--   NUMBER: counts all takes of the cluster upwards.
--   KIND: `f` (a file) or `t` (a path with all paths below it), followed by `?` if the lease was taken soon after
--     Redis lost data; or `r`: released.
--   TOKEN: `NAME INCARNATION PLACE GRANT SESSION` of the holder, without a space in each; PLACE is `-` if unknown.
-- A value of another form was written by another version: a lease that lasts as long as its key.
--
-- KEYS: the epoch (hash), leased paths (sorted set by name), paths leased with all below them (sorted set), then
--       the key of each path
-- ARGV: what to do, start of the keys of leases, TOKEN, lease in ms, how long a lease is remembered in ms, the
--       epoch that the node knows (empty: none), a random name for a new epoch, 1 to compare the server with
--       that of the epoch, the lease's epoch and number (empty and 0: Redis never granted it), 1 if it was kept
--       within the last lease, 1 if a lock on the storage protects the file, the kind of each path
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

-- The epoch ends when Redis loses data: its key is gone, or the server is another process, which may have
-- less than the one before. A node that remembers another epoch proves that there was a cluster: leases
-- that Redis does not know may be held, for as long as a lease lasts.
local state = redis.pcall('HMGET', KEYS[1], 'epoch', 'created', 'doubt', 'server', 'number')
if state.err then
  redis.call('DEL', KEYS[1]) -- no hash: not ours
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
  -- Above all numbers of the epochs before: no cluster takes a thousand leases a millisecond.
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

-- The lease at a key; nil if there is none.
local function read(key)
  local value = redis.pcall('GET', key)
  if type(value) ~= 'string' then
    return nil -- missing, or no string: not ours
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

-- Whether the holder of a lease is this process, or one before it at the same place, which is dead. (A node
-- asks only for paths that it has not leased itself: a lease of its own is about to be released, or the
-- answer to the request that took it was lost.)
local function is_own(lease)
  local name, incarnation, place = string.match(token, '^(%S+) (%S+) (%S+) ')
  local its_name, its_incarnation, its_place = string.match(lease.holder, '^(%S+) (%S+) (%S+) ')
  return its_name == name and (its_incarnation == incarnation or place ~= '-' and its_place == place)
end

-- Whether this lease, which Redis does not have as it was granted, is its holder's all the same: `found` is
-- what Redis has for its path. A lease that was kept within the last lease, before Redis lost data, goes before
-- those that were taken in doubt. Where a lock on the storage proves that no other session wrote the file, it
-- is enough that no other session holds a lease now.
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

-- Runs a command on a sorted set; a value of another type is not ours.
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

