"""Lua scripts that change a session atomically. Each uses one key, so they run on a Redis Cluster.

A session is a hash with the field `created`. When it ends or moves, a string takes its place: a mark that is "" or the
name to which the session moved. A HSET of a running request then fails with WRONGTYPE, and so brings nothing back. The
scripts SAVE, SWAP and MOVE fail in the same way.
"""

GUARD = "if redis.call('HEXISTS', KEYS[1], 'created') == 0 then return 0 end"

# ARGV: new TTL in ms or 0, number of ARGV to set, field, value ..., then fields to delete.
# In chunks, because Lua unpacks at most 8,000 values.
WRITE = """
local last = ARGV[2] + 2
for i = 3, last, 1000 do redis.call('HSET', KEYS[1], unpack(ARGV, i, math.min(i + 999, last))) end
for i = last + 1, #ARGV, 1000 do redis.call('HDEL', KEYS[1], unpack(ARGV, i, math.min(i + 999, #ARGV))) end
if ARGV[1] ~= '0' then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return 1
"""

# KEYS: the session. Returns 1 if written, 0 if there is none.
SAVE = GUARD + WRITE

# KEYS: a new session. Returns 1 if written, 0 if END came first.
CREATE = "if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end" + WRITE

# KEYS: a session that a HSET has written to. Returns 1 if it was there. If it was not (an eviction), deletes what the
# HSET made and returns 0. A mark there is newer than the HSET, which would have failed.
CHECK = """
if redis.call('TYPE', KEYS[1]).ok == 'string' or redis.call('HEXISTS', KEYS[1], 'created') == 1 then return 1 end
redis.call('DEL', KEYS[1])
return 0
"""

# KEYS: the session. ARGV: field, the value that was read or "", the new value. Returns 1 if written, 0 if there is
# none, or {the value that another request wrote, nil for none}.
SWAP = (
    GUARD
    + """
local found = redis.call('HGET', KEYS[1], ARGV[1])
if (found or '') ~= ARGV[2] then return {found} end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
return 1
"""
)

# KEYS: the session. ARGV: its new name, ms to keep the mark. Returns the fields that were there, or 0 if there is none.
MOVE = (
    GUARD
    + """
local found = redis.call('HGETALL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return found
"""
)

# KEYS: the session. ARGV: the user as JSON and as text, ms to keep the mark. The session of another user is left alone.
# A session that does not exist may be about to be created, because its user's set is written first; the mark prevents
# that. Returns -1 if left alone, 1 if ended, 0 if there was none.
END = """
if redis.call('TYPE', KEYS[1]).ok == 'string' then
    redis.call('PEXPIRE', KEYS[1], ARGV[3])
    return 0
end
local user = redis.call('HGET', KEYS[1], ':user_id')
if user and user ~= ARGV[1] and user ~= ARGV[2] then return -1 end
local ended = redis.call('HEXISTS', KEYS[1], 'created')
redis.call('SET', KEYS[1], '', 'PX', ARGV[3])
return ended
"""
LEFT_ALONE, ENDED = -1, 1
