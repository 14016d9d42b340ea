-- Begins, keeps or ends the count of a home. Returns 1, or 0 if another node has the right to count, or no
-- count is due.
-- KEYS: the home (hash)
-- ARGV: 'begin', 'keep' or 'end'; a unique token of this count; lease in ms; time between two counts in ms;
--       time in ms for which an unused home is kept; with 'end': bytes and files counted
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then
  redis.call('DEL', KEYS[1]) -- not written by this script
end
local fields = redis.call('HMGET', KEYS[1], 'scan', 'scan_until', 'bytes', 'files', 'counted', 'changes')
local scan, scan_until, counted = fields[1], tonumber(fields[2] or 0) or 0, tonumber(fields[5] or 0) or 0
local used = {tonumber(fields[3] or ''), tonumber(fields[4] or '')}
local is_counted = used[1] and used[2]
local function text(number)
  return string.format('%.0f', math.max(0, number))
end

if ARGV[1] == 'begin' then
  if scan ~= ARGV[2] and (scan and scan_until > now or is_counted and counted + ARGV[4] > now) then
    return 0
  end
  redis.call('HSET', KEYS[1], 'scan', ARGV[2], 'scan_until', text(now + ARGV[3]), 'changes', '0 0 0 0')
  redis.call('PEXPIRE', KEYS[1], ARGV[5])
  return 1
end
if scan ~= ARGV[2] then
  return 0
end
if ARGV[1] == 'keep' then
  redis.call('HSET', KEYS[1], 'scan_until', text(now + ARGV[3]))
  return 1
end

-- The count may have seen any part of the changes since it began, and any part of the files that are being
-- written. So the true usage lies between two bounds.
local changes, reserved = {}, {0, 0}
for number in string.gmatch(fields[6] or '', '%-?%d+') do
  changes[#changes + 1] = tonumber(number)
end
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  if string.sub(all[i], 1, 5) == 'node:' then
    local bytes, files = string.match(all[i + 1], '(%d+) (%d+)$')
    reserved = {reserved[1] + (tonumber(bytes) or 0), reserved[2] + (tonumber(files) or 0)}
  end
end
local is_exact, result = true, {}
for i = 1, 2 do
  local scanned, added, removed = tonumber(ARGV[5 + i]), changes[2 * i - 1] or 0, changes[2 * i] or 0
  local least, most = scanned - removed - reserved[i], scanned + added + reserved[i]
  result[i] = is_counted and math.max(least, math.min(most, used[i])) or scanned + added
  is_exact = is_exact and least == most
end
-- If the home changed during its first count, another count is due at once: it can correct what the first
-- one missed.
local at = (is_counted or is_exact) and now or 0
redis.call('HSET', KEYS[1], 'bytes', text(result[1]), 'files', text(result[2]), 'counted', text(at))
redis.call('HDEL', KEYS[1], 'scan', 'scan_until', 'changes')
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return 1
