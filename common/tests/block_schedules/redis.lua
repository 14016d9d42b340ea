-- A Redis in memory, with the commands that publish_node.lua and leave_node.lua use. Values are
-- {type = 'hash', 'set', 'list' or 'string', value = ...}. `clock` is the time in ms; the test sets it.
local database, expires, clock = {}, {}, 0

local function find(key, kind)
  if expires[key] and expires[key] <= clock then
    database[key], expires[key] = nil, nil
  end
  local entry = database[key]
  assert(not entry or not kind or entry.type == kind, 'WRONGTYPE ' .. key)
  return entry
end

local function get_or_make(key, kind)
  local entry = find(key, kind)
  if not entry then
    entry = {type = kind, value = {}}
    database[key] = entry
  end
  return entry.value
end

local function sorted(map)
  local keys = {}
  for key in pairs(map) do
    keys[#keys + 1] = key
  end
  table.sort(keys)
  return keys
end

local commands = {}

function commands.TIME()
  return {string.format('%.0f', math.floor(clock / 1000)), string.format('%.0f', clock % 1000 * 1000)}
end

function commands.TYPE(key)
  local entry = find(key)
  return {ok = entry and entry.type or 'none'}
end

function commands.DEL(...)
  for _, key in ipairs({...}) do
    database[key], expires[key] = nil, nil
  end
  return 1
end

function commands.PEXPIRE(key, time)
  if find(key) then
    expires[key] = clock + tonumber(time)
  end
  return 1
end

function commands.EXPIRE(key, time)
  return commands.PEXPIRE(key, tonumber(time) * 1000)
end

function commands.PTTL(key)
  if not find(key) then
    return -2
  end
  return expires[key] and expires[key] - clock or -1
end

function commands.GET(key)
  local entry = find(key, 'string')
  return entry and entry.value or false
end

function commands.HSET(key, ...)
  local hash, values = get_or_make(key, 'hash'), {...}
  for i = 1, #values, 2 do
    hash[tostring(values[i])] = tostring(values[i + 1])
  end
  return #values / 2
end

function commands.HDEL(key, field)
  local entry = find(key, 'hash')
  if entry then
    entry.value[field] = nil
    if not next(entry.value) then
      commands.DEL(key)
    end
  end
  return 1
end

function commands.HGET(key, field)
  local entry = find(key, 'hash')
  return entry and entry.value[field] or false
end

function commands.HMGET(key, ...)
  local entry, found = find(key, 'hash'), {}
  for i, field in ipairs({...}) do
    found[i] = entry and entry.value[field] or false
  end
  return found
end

function commands.HGETALL(key)
  local entry, all = find(key, 'hash'), {}
  for field, value in pairs(entry and entry.value or {}) do
    all[#all + 1], all[#all + 2] = field, value
  end
  return all
end

function commands.HLEN(key)
  local entry = find(key, 'hash')
  return entry and #sorted(entry.value) or 0
end

function commands.SADD(key, member)
  get_or_make(key, 'set')[member] = true
  return 1
end

function commands.SREM(key, member)
  local entry = find(key, 'set')
  if entry then
    entry.value[member] = nil
    if not next(entry.value) then
      commands.DEL(key)
    end
  end
  return 1
end

function commands.SMEMBERS(key)
  local entry = find(key, 'set')
  return sorted(entry and entry.value or {})
end

function commands.RPUSH(key, value)
  local list = get_or_make(key, 'list')
  list[#list + 1] = value
  return #list
end

redis = {}

function redis.call(command, ...)
  local run = commands[command]
  assert(run, 'the simulation has no command ' .. command)
  return run(...)
end

redis.pcall = redis.call

-- The rest is for the test.
simulation = {}

-- Forgets everything.
function simulation.clear()
  database, expires = {}, {}
end

function simulation.run(script, now, keys, argv)
  clock, KEYS, ARGV = now, keys, argv
  return script()
end

-- Takes all commands out of a list.
function simulation.take(now, key)
  clock = now
  local entry = find(key, 'list')
  commands.DEL(key)
  return entry and #entry.value or 0
end
