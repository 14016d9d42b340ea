-- Releases a lease of paths. Follows lease.lua. Returns {'held', epoch} if no other session had a path
-- since the lease was taken, otherwise {'lost', epoch}. 'give' remembers the release for the duration of a
-- lease, so that the request can be repeated. 'drop' is a release whose answer is ignored.
local is_held = true
for i = 4, #KEYS do
  local found = read(KEYS[i])
  if found and found.holder == token then
    if found.kind ~= 'r' then
      forget(path_of(KEYS[i]))
    end
    -- After a loss of data, an earlier holder of the path must learn that another session had it meanwhile.
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
