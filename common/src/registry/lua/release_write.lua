-- Gives back the right to write paths (after lease.lua): {'held', epoch} if no other session had it until now, or
-- {'lost', epoch}. 'give' remembers for a lease that the path was released, so that the request can be repeated;
-- 'drop' is a release whose answer does not matter.
local is_held = true
for i = 4, #KEYS do
  local found = read(KEYS[i])
  if found and found.holder == token then
    if found.kind ~= 'r' then
      forget(path_of(KEYS[i]))
    end
    -- After a loss of data the holder before must find that the path was taken meanwhile.
    if step == 'give' or is_young then
      local value = '2:0:' .. whole(found.number) .. ':r ' .. token
      redis.call('SET', KEYS[i], value, 'PX', lease_ms)
    else
      redis.call('DEL', KEYS[i])
    end
  elseif not may_return(found) then
    is_held = false
  end
end
return {is_held and 'held' or 'lost', epoch}
