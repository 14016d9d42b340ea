-- Adds a command to a node's list, and its order. An order to drain revokes one to end a drain, and the
-- reverse. Returns 1, or 0 if there is no live node of this name.
-- KEYS: the node (hash), its commands (list), its orders (hash)
-- ARGV: the command; lifetime of the list in seconds; maximum length of the list; the order that belongs to
--       the command ('': none); lifetime of an order in seconds; the field for its reason, and the
--       reason ('': none)
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
if ARGV[4] ~= '' then
  local incarnation = redis.pcall('HGET', KEYS[1], 'incarnation')
  incarnation = type(incarnation) == 'string' and incarnation or ''
  if redis.pcall('HGET', KEYS[3], 'incarnation') ~= incarnation then
    redis.call('DEL', KEYS[3]) -- no hash, or orders for an earlier process
  end
  redis.call('HSET', KEYS[3], 'incarnation', incarnation)
  local opposite = {drain = 'undrain', undrain = 'drain'}
  if opposite[ARGV[4]] then
    redis.call('HDEL', KEYS[3], opposite[ARGV[4]])
  end
  redis.call('HSETNX', KEYS[3], ARGV[4], redis.call('TIME')[1])
  if ARGV[6] ~= '' then
    redis.call('HSETNX', KEYS[3], ARGV[6], ARGV[7])
  end
  redis.call('EXPIRE', KEYS[3], ARGV[5])
end
if redis.call('TYPE', KEYS[2]).ok ~= 'list' then
  redis.call('DEL', KEYS[2])
end
redis.call('LPUSH', KEYS[2], ARGV[1])
redis.call('LTRIM', KEYS[2], 0, ARGV[3] - 1)
redis.call('EXPIRE', KEYS[2], ARGV[2])
return 1
