-- Takes bytes from a user's bandwidth. Returns {microseconds to wait before the bytes may move, number of
-- the user's transfers in this direction on all nodes}.
-- KEYS: the user's bandwidth in one direction (hash)
-- ARGV: bytes per second, bytes to take, longest burst (time in microseconds whose bytes an idle user
--       accumulates), name of the node, number of the user's transfers on that node
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then
  redis.call('DEL', KEYS[1]) -- not written by this script
end
local own = 'node:' .. ARGV[4]
local free, transfers, all = 0, tonumber(ARGV[5]), redis.call('HGETALL', KEYS[1])
local is_set_back = false
for i = 1, #all, 2 do
  if all[i] == 'free' then
    free = tonumber(all[i + 1]) or 0
  else
    local count, at = string.match(all[i + 1], '^(%d+) (%d+)$')
    local since = at and now - at
    -- More than 1 s in the future: the clock was set back. Less is simply waited for.
    local is_later = since and since < -1000000
    is_set_back = is_set_back or is_later
    if all[i] ~= own then
      -- A node without a request for 10 s counts as one without transfers.
      if since and not is_later and since < 10000000 then
        transfers = transfers + count
      else
        redis.call('HDEL', KEYS[1], all[i])
      end
    end
  end
end
-- The clock was set back: `free` may lie that far in the future, so start from now.
if is_set_back then
  free = now
end
local from = math.max(free, now - ARGV[3])
local to = from + ARGV[2] * 1000000 / ARGV[1]
redis.call('HSET', KEYS[1], 'free', string.format('%.0f', to), own,
  ARGV[5] .. ' ' .. string.format('%.0f', now))
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', math.max(to - now, 0) / 1000 + 10000))
return {math.max(0, math.ceil(from - now)), transfers}
