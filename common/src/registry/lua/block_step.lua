-- The common start of publish_node.lua: one step of a node that leases blocks of passive ports.
--
-- The table of blocks is a hash. Its fields:
--   FROM-TO (the ports of a block): `OWNER INCARNATION GENERATION USABLE_AT LAST`; of a free block
--     `* * GENERATION REST_UNTIL LAST`. All times are Unix ms of Redis's clock.
--     GENERATION: rises with each owner, also when Redis lost data in between: at least the time in ms.
--     USABLE_AT: the owner reserves no port on the block before. REST_UNTIL: no other node does.
--     LAST: `NAME/INCARNATION` of the last process that could reserve ports on the block; `*`: this table
--     does not know any; `!`: two nodes with static slices.
--   table: `CREATED DOUBT`. DOUBT is 1 if a node had blocks before this table was created.
--   @NAME: `INCARNATION PLACE` of the last process of a node.

-- Takes a step. `node`: name, incarnation, place, before (incarnation of an earlier process of the node that
-- is dead; may be nil), from, to and size (the layout), is_draining, is_strict (registry_away is refuse),
-- has_lapsed (the node's lease may have ended, by its own clock), is_late (the request was under way for so
-- long that its claims may be outdated), claims and released (generation by field). `others`: the other live
-- nodes, each with name, incarnation, from and to (a static slice), is_leased, is_draining. `times`: now,
-- rest, settle, lease, kept (all ms).
-- Returns the words of the reply, and the names of the leased nodes that own more than their share.
--   Words: the node's share (`late` if is_late); then its blocks `FROM-TO:GENERATION:WAIT` (WAIT: ms until
--   the node may use it); then blocks that the node claimed and does not own: `FROM-TO:GENERATION:-OWNER`
--   (OWNER empty: none).
local function block_step(key, node, others, times)
  local now = times.now
  local self = node.name .. '/' .. node.incarnation

  local function whole(number)
    return string.format('%.0f', number)
  end

  local stored = redis.pcall('HGETALL', key)
  if stored.err then
    redis.call('DEL', key) -- no hash: not written by a node
    stored = {}
  end

  local blocks, by_field = {}, {}
  local first = node.from
  while first <= node.to do
    local last = math.min(first + node.size - 1, node.to)
    local block = {field = whole(first) .. '-' .. whole(last), from = first, to = last}
    blocks[#blocks + 1], by_field[block.field] = block, block
    first = last + 1
  end

  local created, is_doubtful = nil, false
  local places, foreign = {}, {}
  for i = 1, #stored, 2 do
    local field, value = stored[i], stored[i + 1]
    local owner, incarnation, generation, time, last =
      string.match(value, '^(%S+) (%S+) (%d+) (%d+) (%S+)$')
    local block = by_field[field]
    if field == 'table' then
      created, is_doubtful = tonumber(string.match(value, '^(%d+) ')), string.sub(value, -1) == '1'
    elseif string.sub(field, 1, 1) == '@' then
      places[string.sub(field, 2)] = value
    elseif block and owner then
      block.owner, block.incarnation, block.last = owner, incarnation, last
      block.generation, block.is_known = tonumber(generation), true
      -- If Redis's clock was set back, the time may lie in the far future.
      local latest = now + times.lease + times.rest + times.settle
      block.time = tonumber(time) <= latest and tonumber(time) or now + times.rest
    else
      foreign[#foreign + 1] = field
    end
  end
  local table_before = created and whole(created) .. (is_doubtful and ' 1' or ' 0')
  created = math.min(created or now, now)
  -- The time until which a node that was cut off when this table was created may use blocks that the table
  -- does not know. With `admit`, the first nodes of a cluster do not wait for it: the table becomes doubtful
  -- when some process proves that it had blocks before.
  local function unknown_until()
    return (node.is_strict or is_doubtful) and created + times.lease + times.rest or 0
  end

  local function free(block, last, time)
    block.owner, block.incarnation, block.last, block.time = '*', '*', last, time
    block.generation, block.is_known, block.is_changed = block.generation or 0, true, true
  end
  local function own(block, generation, last, time)
    block.owner, block.incarnation, block.last, block.time = node.name, node.incarnation, last, time
    block.generation, block.is_known, block.is_changed = generation, true, true
  end
  local function is_own(block)
    return block.owner == node.name and block.incarnation == node.incarnation
  end
  -- True if the owner could not use the block yet.
  local function is_settling(block)
    return block.last ~= block.owner .. '/' .. block.incarnation
  end
  local function next_generation(block)
    return math.max((block.generation or 0) + 1, now)
  end

  -- Blocks of another layout: nodes with other settings owned them, and have ended.
  for _, field in ipairs(foreign) do
    redis.call('HDEL', key, field)
    local from, to = string.match(field, '^(%d+)%-(%d+)$')
    if from then
      for _, block in ipairs(blocks) do
        if not block.is_known and block.from <= tonumber(to) and tonumber(from) <= block.to then
          free(block, '!', now + times.rest)
        end
      end
    end
  end

  -- An earlier process of this node at the same place is dead. Its blocks are this process's.
  local place_before = places[node.name]
  local its_incarnation, its_place = string.match(place_before or '', '^(%S+) (.*)$')
  local before = node.before or node.place ~= '' and its_place == node.place and its_incarnation
  if before and before ~= node.incarnation then
    for _, block in ipairs(blocks) do
      if block.owner == node.name and block.incarnation == before then
        block.incarnation, block.is_changed = node.incarnation, true
      end
      if block.last == node.name .. '/' .. before then
        block.last, block.is_changed = self, true
      end
    end
  end
  places[node.name] = node.incarnation .. ' ' .. node.place
  if place_before ~= places[node.name] then
    redis.call('HSET', key, '@' .. node.name, places[node.name])
  end

  -- Blocks of dead nodes, and of nodes with static slices, which have precedence.
  local live = {[node.name] = node.incarnation}
  for _, other in ipairs(others) do
    live[other.name] = other.incarnation
  end
  for _, block in ipairs(blocks) do
    if block.is_known and block.owner ~= '*' and live[block.owner] ~= block.incarnation then
      local time = now + times.rest
      free(block, block.last, is_settling(block) and math.max(time, block.time) or time)
    end
    for _, other in ipairs(others) do
      if not other.is_leased and other.from <= block.to and block.from <= other.to then
        local covers = not block.static and other.from <= block.from and block.to <= other.to
        free(block, covers and other.name .. '/' .. other.incarnation or '!', now + times.rest)
        block.static = other.name
      end
    end
  end

  local lost = {}
  if node.is_late then
    is_doubtful = is_doubtful or next(node.claims) ~= nil
  else
    -- Blocks on which the node could reserve ports until now.
    for field, generation in pairs(node.has_lapsed and {} or node.claims) do
      local block = by_field[field]
      if not block or block.static then
        lost[#lost + 1] = field
      elseif not block.is_known then
        own(block, generation, self, now)
        is_doubtful = true
      elseif is_own(block) then
        if is_settling(block) then
          own(block, block.generation, self, now)
        end
      elseif block.last == self then
        own(block, next_generation(block), self, now) -- no other node has used it yet
      elseif block.last == '*' or generation > block.generation then
        is_doubtful = is_doubtful or block.last == '*'
        own(block, generation, self, now)
      else
        lost[#lost + 1] = field
      end
    end
    if node.has_lapsed then
      for field in pairs(node.claims) do
        if not by_field[field] or not is_own(by_field[field]) then
          lost[#lost + 1] = field
        end
      end
    end
    -- The request may be carried out twice: a block that the node has taken again since stays.
    for field, generation in pairs(node.released) do
      local block = by_field[field]
      if block and block.is_known and is_own(block) and block.generation <= generation then
        free(block, block.last, is_settling(block) and block.time or 0)
      end
    end
  end
  if is_doubtful then
    -- Some node may still use a block that this table does not know.
    for _, block in ipairs(blocks) do
      if block.is_known and block.last == '*' and block.time < unknown_until() then
        block.time, block.is_changed = unknown_until(), true
      end
    end
  end

  -- The shares. A draining node keeps its blocks and takes none.
  local names, is_draining, counts, shared = {}, {}, {}, 0
  local function enter(name, draining)
    is_draining[name] = draining
    if not draining then
      names[#names + 1] = name
    end
  end
  enter(node.name, node.is_draining)
  for _, other in ipairs(others) do
    if other.is_leased then
      enter(other.name, other.is_draining)
    end
  end
  table.sort(names)
  for _, block in ipairs(blocks) do
    local owner = block.is_known and block.owner or '*'
    counts[owner] = (counts[owner] or 0) + 1
    if not block.static and not is_draining[owner] then
      shared = shared + 1
    end
  end
  local shares = {}
  for i, name in ipairs(names) do
    shares[name] = math.floor(shared / #names) + (i <= shared % #names and 1 or 0)
  end
  local share = shares[node.name] or counts[node.name] or 0

  local missing = share - (counts[node.name] or 0)
  if missing > 0 and not node.is_late then
    local available = {}
    for _, block in ipairs(blocks) do
      if not block.static and (not block.is_known or block.owner == '*') then
        available[#available + 1] = block
      end
    end
    table.sort(available, function(a, b)
      if (a.last == self) ~= (b.last == self) then
        return a.last == self
      end
      if (a.time or 0) ~= (b.time or 0) then
        return (a.time or 0) < (b.time or 0)
      end
      return a.from < b.from
    end)
    for i = 1, math.min(missing, #available) do
      local block = available[i]
      if block.last == self then
        own(block, next_generation(block), self, now)
      else
        local time = math.max(block.time or 0, now + times.settle)
        if not block.is_known or block.last == '*' then
          time = math.max(time, unknown_until())
        end
        own(block, next_generation(block), block.last or '*', time)
      end
      missing = missing - 1
    end
  end

  local reply = {node.is_late and 'late' or whole(share)}
  local known_names = {}
  for _, block in ipairs(blocks) do
    if is_own(block) then
      if is_settling(block) and block.time <= now then
        own(block, block.generation, self, block.time)
      end
      local wait = is_settling(block) and block.time - now or 0
      reply[#reply + 1] = block.field .. ':' .. whole(block.generation) .. ':' .. whole(wait)
    end
    if block.is_changed then
      local value = block.owner .. ' ' .. block.incarnation .. ' ' .. whole(block.generation) .. ' '
        .. whole(block.time) .. ' ' .. block.last
      redis.call('HSET', key, block.field, value)
    end
    known_names[block.owner or ''] = true
    known_names[string.match(block.last or '', '^(.*)/') or ''] = true
  end
  for _, field in ipairs(lost) do
    local block = by_field[field]
    if not block or not is_own(block) then
      local owner = block and (block.static or block.owner ~= '*' and block.owner) or ''
      reply[#reply + 1] = field .. ':' .. whole(block and block.generation or 0) .. ':-' .. owner
    end
  end
  for name in pairs(places) do
    if not live[name] and not known_names[name] then
      redis.call('HDEL', key, '@' .. name)
    end
  end
  local table_now = whole(created) .. (is_doubtful and ' 1' or ' 0')
  if table_now ~= table_before then
    redis.call('HSET', key, 'table', table_now)
  end
  redis.call('PEXPIRE', key, times.kept)

  local rich = {}
  if missing > 0 then
    for _, other in ipairs(others) do
      if other.is_leased and (counts[other.name] or 0) > (shares[other.name] or math.huge) then
        rich[#rich + 1] = other.name
      end
    end
  end
  return reply, rich
end

