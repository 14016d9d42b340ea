-- Takes or keeps the right to write paths, all or none (after lease.lua).
-- 'take' answers {'held', epoch, number, 1 if Redis lost data within the last lease, or 0},
--   {'busy', where the other lease is, its token, epoch} or {'more'}: call again;
-- 'keep' answers {'held', …} or {'lost', epoch}.
-- 'look' answers {epoch}, and leases nothing: each node sends it with each refresh.
-- Tokens tell a request that is repeated from a new one.

-- At most so many paths below a tree are looked at in one call.
local MOST = 200
-- Each so many takes, a quarter as many paths are looked at: a node that died has left some in the sets.
local SWEEP = 64

if step == 'look' then
  for i = 1, 3 do
    redis.call('PEXPIRE', KEYS[i], remembered_ms)
  end
  return {epoch}
end
local is_take = step == 'take'

-- The lease of `path` if it stands in the way of these; otherwise removes what is left of it, so that its holder,
-- should it come back, finds that it lost the lease.
local function standing_in_way(path)
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

-- A tree above `path` that is leased, or nil.
local function conflict_above(path)
  local ends = 0
  while ends do
    local above = string.sub(path, 1, math.max(ends - 1, 0))
    if on_set('ZSCORE', KEYS[3], above) then
      local lease = read(prefix .. above)
      if lease and lease.is_live and lease.kind ~= 't' then
        redis.call('ZREM', KEYS[3], above) -- a file now
      else
        lease = standing_in_way(above)
        if lease then
          return lease
        end
      end
    end
    ends = string.find(path, '/', ends + 1, true)
  end
end

-- A lease below `path`, nil, or true if there are more paths to look at.
local function conflict_below(path)
  local first, last = '(' .. path .. '/', '(' .. path .. '0' -- 0 comes after /
  if path == '' then
    first, last = '-', '+'
  end
  local found = on_set('ZRANGEBYLEX', KEYS[2], first, last, 'LIMIT', 0, MOST)
  for _, below in ipairs(found) do
    if below ~= path then
      local lease = standing_in_way(below)
      if lease then
        return lease
      end
    end
  end
  return #found == MOST
end

local leases = {}
local must_look_around = is_take
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
      must_look_around = true
    end
  end
end
if must_look_around then
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
  -- Redis before 6.2 does not know the command; then the set goes when no path is leased for long.
  local some = redis.pcall('ZRANDMEMBER', KEYS[2], SWEEP / 4)
  for _, path in ipairs(some) do
    if redis.call('EXISTS', prefix .. path) == 0 then
      forget(path)
    end
  end
end
return {'held', epoch, whole(number), is_marked and '1' or '0'}
