-- Takes or keeps a lease of paths, all of them or none. Follows lease.lua.
-- 'take' returns one of
--   {'held', epoch, number, 1 if Redis lost data within the last lease, otherwise 0}
--   {'busy', position of the other lease ('at', 'below', 'above'), its token, epoch}
--   {'more'}: call again.
-- 'keep' returns {'held', ...} as 'take', or {'lost', epoch}.
-- 'look' returns {epoch} and leases nothing. Each node sends it at each refresh.
-- A request may arrive twice: its token shows that it is a repetition.

-- Maximum number of paths below a tree that one call looks at.
local MOST = 200
-- Every SWEEP takes, SWEEP / 4 random paths are checked, and removed from the sets if their lease has
-- expired. Dead nodes leave such paths.
local SWEEP = 64

if step == 'look' then
  for i = 1, 3 do
    redis.call('PEXPIRE', KEYS[i], remembered_ms)
  end
  return {epoch}
end
local is_take = step == 'take'

-- Returns the lease of `path` if it prevents this request. Otherwise deletes that lease, so that its
-- holder, if it comes back, learns that the lease is lost.
local function preventing_lease(path)
  local lease = read(prefix .. path)
  if lease and lease.is_live and lease.holder ~= token then
    local may_pass = is_take and is_own(lease) or not is_take and may_return(lease)
    if not may_pass then
      return lease
    end
  end
  if lease and lease.holder ~= token then
    redis.call('DEL', prefix .. path)
  end
  forget(path)
end

-- Returns the lease of a tree above `path` that prevents this request, or nil.
local function conflict_above(path)
  local ends = 0
  while ends do
    local above = string.sub(path, 1, math.max(ends - 1, 0))
    if on_set('ZSCORE', KEYS[3], above) then
      local lease = read(prefix .. above)
      if lease and lease.is_live and lease.kind ~= 't' then
        redis.call('ZREM', KEYS[3], above) -- leased as a file now
      else
        lease = preventing_lease(above)
        if lease then
          return lease
        end
      end
    end
    ends = string.find(path, '/', ends + 1, true)
  end
end

-- Returns a lease below `path` that prevents this request, nil, or true if there are more paths to look at.
local function conflict_below(path)
  local first, last = '(' .. path .. '/', '(' .. path .. '0' -- '0' is the byte after '/'
  if path == '' then
    first, last = '-', '+'
  end
  local found = on_set('ZRANGEBYLEX', KEYS[2], first, last, 'LIMIT', 0, MOST)
  for _, below in ipairs(found) do
    if below ~= path then
      local lease = preventing_lease(below)
      if lease then
        return lease
      end
    end
  end
  return #found == MOST
end

local leases = {}
local must_check_trees = is_take
for i = 4, #KEYS do
  local found = read(KEYS[i])
  leases[i] = found
  local is_same = found and found.holder == token and (found.kind ~= 'r' or is_take)
  if not is_same then
    if is_take then
      if found and found.is_live and not is_own(found) then
        return {'busy', 'at', found.holder, epoch}
      end
    elseif not may_return(found) or found and found.holder == token then
      return {'lost', epoch}
    else
      must_check_trees = true
    end
  end
end
if must_check_trees then
  local has_trees = redis.call('EXISTS', KEYS[3]) == 1
  for i = 4, #KEYS do
    local path = path_of(KEYS[i])
    local lease, where = has_trees and path ~= '' and conflict_above(path) or nil, 'above'
    if not lease and string.sub(kinds, i - 3, i - 3) == 't' then
      lease, where = conflict_below(path), 'below'
      if lease == true then
        return {'more'}
      end
    end
    if lease then
      return is_take and {'busy', where, lease.holder, epoch} or {'lost', epoch}
    end
  end
end

local number = own_number
if is_take or number == 0 then
  number = redis.call('HINCRBY', KEYS[1], 'number', 1)
end
local is_marked = false
for i = 4, #KEYS do
  local found, path, kind = leases[i], path_of(KEYS[i]), string.sub(kinds, i - 3, i - 3)
  local is_same = found and found.holder == token
  local doubts = is_take or is_same and found.is_doubtful or not is_same and own_epoch == ''
  if is_uncertain and doubts then
    kind, is_marked = kind .. '?', true
  end
  local value = '2:' .. whole(now + lease_ms) .. ':' .. whole(number) .. ':' .. kind .. ' ' .. token
  redis.call('SET', KEYS[i], value, 'PX', remembered_ms)
  if not is_same or is_take then
    on_set('ZADD', KEYS[2], 0, path)
    if string.sub(kind, 1, 1) == 't' then
      on_set('ZADD', KEYS[3], 0, path)
    end
  end
end
if is_take and number % SWEEP == 0 then
  -- Redis before 6.2 does not know the command. There the set expires when no path has been leased for long.
  local some = redis.pcall('ZRANDMEMBER', KEYS[2], SWEEP / 4)
  for _, path in ipairs(some) do
    if redis.call('EXISTS', prefix .. path) == 0 then
      forget(path)
    end
  end
end
return {'held', epoch, whole(number), is_marked and '1' or '0'}
