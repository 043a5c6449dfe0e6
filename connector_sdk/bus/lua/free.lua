-- Let others have a key, if the holder has it and has not marked its work as done.
--
-- KEYS[4]   <tag>:once:<key>
-- ARGV[1]   holder
--
-- Returns   nil

local key = KEYS[4]
if call('HGET', key, 'h') == ARGV[1] and not call('HGET', key, 'd') then
  call('HDEL', key, 'h')
end
