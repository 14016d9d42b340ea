-- Notes what a node has changed in a home, and reserves room in it. Returns {1 if the home was counted
-- before, otherwise 0; 1 if it should be counted now, otherwise 0; bytes and files on the storage; bytes
-- and files that other nodes have reserved; bytes and files granted}.
-- KEYS: the home (hash), this node (hash; the key ends with the name)
-- ARGV: 1 name, 2 incarnation, 3 time between two counts in ms, 4 time in ms for which an unused home is
--       kept, 5 to 8 sums of this process: bytes added, bytes removed, files added, files removed, 9 to 12
--       the same sums at the last answer of Redis, 13 and 14 bytes and files that the node has reserved, 15
--       and 16 bytes and files wanted, 17 and 18 limits of bytes and files (-1: no limit), 19 smallest
--       grant in bytes, 20 '1' if bytes are wanted all or none
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then
  redis.call('DEL', KEYS[1]) -- not written by this script
end
local home, all = {}, redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  home[all[i]] = all[i + 1]
end
local function numbers(text)
  local found = {}
  for number in string.gmatch(text or '', '%-?%d+') do
    found[#found + 1] = tonumber(number)
  end
  return found
end
local function text(number)
  return string.format('%.0f', number)
end

-- Reservations of a dead node become free. Its last changes may be missing, so the home should be counted.
local own = 'node:' .. ARGV[1] .. ' ' .. ARGV[2]
local prefix = string.sub(KEYS[2], 1, -#ARGV[1] - 1)
local others = {0, 0}
for field, value in pairs(home) do
  local name, incarnation = string.match(field, '^node:(.+) (%d+)$')
  if name and field ~= own then
    local its = numbers(value)
    local living = redis.pcall('HGET', prefix .. name, 'incarnation')
    local bytes, files = its[5] or 0, its[6] or 0
    if living == incarnation then
      others = {others[1] + bytes, others[2] + files}
    else
      if living then
        redis.call('HDEL', KEYS[1], field)
      elseif bytes + files > 0 then
        -- The node's sums stay: if it is alive after all, its next request carries absolute sums, so
        -- nothing is counted twice.
        redis.call('HSET', KEYS[1], field, (string.gsub(value, '%d+ %d+$', '0 0')))
      end
      if bytes + files > 0 then
        home.counted = '0'
      end
    end
  end
end

-- The sums are absolute, so a request may arrive twice, late or never.
local known, so_far, change = numbers(home[own]), {}, {}
for i = 1, 4 do
  so_far[i] = tonumber(ARGV[4 + i])
  change[i] = so_far[i] - (known[i] or tonumber(ARGV[8 + i]))
end
local used = {tonumber(home.bytes), tonumber(home.files)}
local counted = used[1] and used[2]
if counted then
  used = {math.max(0, used[1] + change[1] - change[2]), math.max(0, used[2] + change[3] - change[4])}
  redis.call('HSET', KEYS[1], 'bytes', text(used[1]), 'files', text(used[2]), 'counted', home.counted or '0')
end
if home.scan then
  local seen = numbers(home.changes)
  for i = 1, 4 do
    seen[i] = text((seen[i] or 0) + change[i])
  end
  redis.call('HSET', KEYS[1], 'changes', table.concat(seen, ' '))
end

local reserved, wanted, granted = {}, {}, {0, 0}
for i = 1, 2 do
  reserved[i], wanted[i] = tonumber(ARGV[12 + i]), tonumber(ARGV[14 + i])
  local limit = tonumber(ARGV[16 + i])
  if counted then
    local room = limit < 0 and wanted[i] or limit - used[i] - others[i] - reserved[i]
    if (i == 2 or ARGV[20] == '1') and room < wanted[i] then
      room = 0
    elseif i == 1 and ARGV[20] ~= '1' and limit >= 0 then
      -- Other uploads cannot use what one upload has reserved, so grants become small near the limit.
      room = math.min(room, math.max(tonumber(ARGV[19]), math.floor(room / 8)))
    end
    granted[i] = math.max(0, math.min(wanted[i], room))
  end
end
for i = 1, 4 do
  so_far[i] = text(so_far[i])
end
so_far[5], so_far[6] = text(reserved[1] + granted[1]), text(reserved[2] + granted[2])
redis.call('HSET', KEYS[1], own, table.concat(so_far, ' '))
redis.call('PEXPIRE', KEYS[1], ARGV[4])

local is_fresh = counted and (tonumber(home.counted) or 0) + ARGV[3] > now
local is_scanned = home.scan and (tonumber(home.scan_until) or 0) > now
return {counted and 1 or 0, (is_fresh or is_scanned) and 0 or 1, used[1] or 0, used[2] or 0,
  others[1], others[2], granted[1], granted[2]}
