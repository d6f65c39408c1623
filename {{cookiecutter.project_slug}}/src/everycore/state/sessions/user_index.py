"""The sessions of each user: a set of hashed ids, which expire with their sessions.

An id is added before its session is written and removed after the session is deleted. A worker that dies in between
leaves an id without a session, never a session that cannot be found.
"""

from redis.asyncio import Redis

from everycore.state.expiring_names import ExpiringNames

MARGIN_MS = 60_000  # an id outlives its session, whichever of the two commands is delayed


class UserIndex:
    """The sets of all users, under `<prefix><user>`."""

    def __init__(self, redis: Redis, prefix: str) -> None:
        self._prefix = prefix
        self._ids = ExpiringNames(redis)

    async def register(self, user: str, session: str, life_ms: int) -> None:
        """Add a session to those of a user. It is forgotten after `life_ms` milliseconds."""
        await self._ids.add(self._prefix + user, session, life_ms + MARGIN_MS)

    async def sessions(self, user: str) -> list[str]:
        """Return the hashed ids of sessions that may exist."""
        return await self._ids.names(self._prefix + user)

    async def forget(self, user: str, *sessions: str) -> None:
        """Remove sessions from those of a user."""
        await self._ids.remove(self._prefix + user, *sessions)
