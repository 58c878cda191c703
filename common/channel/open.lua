-- Creates the state of a new generation.
-- KEYS: state, viewers, request
-- ARGV: expiry in ms, the request ('': it is already stored), replica or '', then the state's fields and values
open_log(KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[2], ARGV[3], {unpack(ARGV, 4)})
