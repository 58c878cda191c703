-- Fences a log for a new claim, and returns what the claim needs.
-- KEYS: state, log, live, request
-- ARGV: epoch, token, 1 for a handover, 2 for a job that waited for its upstream, else 0
-- Returns: as `fence_log`
return fence_log(KEYS[1], KEYS[2], KEYS[3], KEYS[4], ARGV[1], ARGV[2], ARGV[3])
