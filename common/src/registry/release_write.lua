-- Gives back the right to write a path, if it is still this lease's.
-- KEYS: the lease. ARGV: its token
if redis.pcall('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
