-- Writes something, so that a WAIT that follows covers every write before it. Returns 1 if this server
-- granted the leases of the epoch, otherwise 0: after a failover the connection may lead to another server.
-- KEYS: the epoch of leases (hash, see lease.lua), a key to write
-- ARGV: the name of the epoch
local state = redis.call('HMGET', KEYS[1], 'epoch', 'server')
local info = redis.pcall('INFO', 'server')
local server = type(info) == 'string' and string.match(info, 'run_id:(%w+)') or ''
redis.call('SET', KEYS[2], 1, 'PX', 1)
return state[1] == ARGV[1] and (state[2] or '') == server and 1 or 0
