-- Gives back the right to write a path: 1 if nobody else had it until now, or 0.
-- KEYS: the lease. ARGV: its token
local held = redis.pcall('GET', KEYS[1])
if held == ARGV[1] then
  redis.call('DEL', KEYS[1])
  return 1
end
-- What Redis has lost, or let expire, nobody else has taken.
return held == false and 1 or 0
