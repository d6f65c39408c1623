"""Server-side sessions: a random id in a signed cookie, and in Redis a hash under the id's SHA-256.

One JSON value for each top-level key, and a save writes only the fields that changed, so two parallel requests of one
visitor never undo each other. It never brings back a session that was ended meanwhile. Reading writes nothing. Each
script touches one key. This room knows no request: `middleware.py` does.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

from redis.asyncio import Redis

from everycore.state.client.script import Script
from everycore.state.sessions.cookie import CookieSigner, hashed
from everycore.state.sessions.scripts import CREATE, END, ENDED, LEAVE, LEFT_ALONE, SAVE, SWAP
from everycore.state.sessions.session import CREATED, TOUCHED, USER, Session, as_json, field
from everycore.state.sessions.user_index import UserIndex

MOVED = b"moved"
NOTE_MS = 60_000  # for how long it is told that an id was left or ended: longer than a request that began before


class SessionTooLargeError(ValueError):
    """One session holds more than `max_bytes`."""


@dataclass(frozen=True)
class Lifetimes:
    """Seconds. A session ends after `idle` without a request, and after `absolute` in any case.

    The idle time is renewed at most once in half of it, so that reading writes nothing: it may end up to half early.
    """

    idle: float = 14 * 86400
    absolute: float = 90 * 86400


@dataclass(frozen=True)
class SessionRecord:
    """hashed_id: not the cookie's. created, touched: Unix times; touched is exact to half the idle time."""

    hashed_id: str
    created: float
    touched: float


class SessionStore:
    """Loads, saves and ends sessions, under `session:<hashed id>` and `session:user:<user>`.

    secret_keys: the first signs, all verify, so a key can be rotated. max_bytes: of one session's fields, JSON.
    While Redis is away all of it raises what redis-py raises, see UNAVAILABLE_ERRORS.
    """

    def __init__(
        self,
        redis: Redis,
        secret_keys: Sequence[str],
        lifetimes: Lifetimes | None = None,
        max_bytes: int = 64 * 1024,
        prefix: str = "session:",
    ) -> None:
        self._redis = redis
        self._signatures = CookieSigner(secret_keys)
        self._users = UserIndex(redis, f"{prefix}user:")
        self.lifetimes = lifetimes or Lifetimes()
        self._max_bytes = max_bytes
        self._prefix = prefix
        self._save, self._create = Script(redis, SAVE), Script(redis, CREATE)
        self._swap, self._leave, self._end = Script(redis, SWAP), Script(redis, LEAVE), Script(redis, END)

    def sign(self, id: str) -> str:
        return self._signatures.sign(id)

    async def load(self, cookie: str | None) -> Session:
        """The visitor's session; a new, empty one for no cookie, a forged one, or an id that Redis does not know."""
        known = self._signatures.verify(cookie)
        if known is None:
            return Session(None, "", {}, self._update)
        id, name = known
        stored = await self._fields(name)
        if CREATED in stored:
            session = Session(id, name, stored, self._update)
            if session.created + self.lifetimes.absolute > time.time():
                return session
        session = Session(None, "", {}, self._update)
        # Its successor's cookie is on the way to the browser: one of a new session would take its place.
        session.superseded = MOVED in stored
        return session

    async def save(self, session: Session) -> bool:
        """Write what changed; True if the session lives on under `session.id`.

        Raises SessionTooLargeError, and TypeError or ValueError for what is no JSON.
        """
        if session.ended:
            await self._destroy(session)
        if session.ended or session.superseded:
            return False
        written, deleted = session.changes()
        now = time.time()
        due = now - session.touched > self.lifetimes.idle / 2
        if not (written or deleted or due or session.moving):
            return session.id is not None
        if session.id is None and not written:
            return False  # a visitor with nothing to remember costs no key and no cookie
        self._check_size(session, written, deleted)
        life = min(self.lifetimes.idle, session.created + self.lifetimes.absolute - now)
        life_ms = max(1, int(life * 1000))
        if session.id is None or session.moving:
            return await self._save_as_new(session, written, deleted, now, life_ms)
        if due:
            written[TOUCHED] = b"%.3f" % now
        if session.user is not None and (due or USER in written):
            await self._users.register(session.user, session.name, life_ms)
        if not await self._write(self._save, session.name, written, deleted, life_ms if due else 0):
            return False
        session.saved(written, deleted)
        return True

    async def sessions_of(self, user: str) -> list[SessionRecord]:
        """The user's living sessions, the oldest first."""
        names = await self._users.sessions(user)
        found = await asyncio.gather(*map(self._fields, names))
        records = [
            SessionRecord(name, float(stored[CREATED]), float(stored[TOUCHED]))
            for name, stored in zip(names, found, strict=True)
            if CREATED in stored and stored.get(USER) == user.encode()
        ]
        return sorted(records, key=lambda record: record.created)

    async def end_all(self, user: str, keep: Session | None = None) -> int:
        """Log the user out everywhere, but for the session `keep`; return how many sessions that were.

        No request still running brings one back, and a login that is being saved meanwhile is ended as well.
        """
        kept = keep.name if keep is not None else None
        names = [name for name in await self._users.sessions(user) if name != kept]
        ends = await asyncio.gather(*(self._end(self._prefix + name, user, NOTE_MS) for name in names))
        await self._users.forget(user, *(name for name, end in zip(names, ends, strict=True) if end != LEFT_ALONE))
        return ends.count(ENDED)

    async def _save_as_new(
        self, session: Session, written: dict[bytes, bytes], deleted: list[bytes], now: float, life_ms: int
    ) -> bool:
        """Write it under a new id; then, if it has an old one, leave that.

        In this order an outage between them loses nothing: the browser still has the old id, and that is alive. Of two
        parallel moves each makes a session, and the browser keeps the cookie that comes last: a login whose first
        answer was never read (a double click) is not lost. If the first one's was ended since, so is the second's.
        """
        old, id = session.name, secrets.token_urlsafe(24)
        name = hashed(id)
        kept = {key: raw for key, raw in session.stored.items() if key not in deleted}
        fields = {**kept, **written, CREATED: b"%.3f" % session.created, TOUCHED: b"%.3f" % now}
        if session.user is not None:
            await self._users.register(session.user, name, life_ms)
        if not await self._write(self._create, name, fields, [], life_ms):
            return False
        if old:
            found = await self._left(session, old, name)
            if found is None:
                await self._redis.delete(self._prefix + name)
                return False
            await self._bring_along(session, name, found, written, life_ms)
            if USER in session.stored:
                await self._users.forget(session.stored[USER].decode(), old)
        session.id, session.name, session.moving = id, name, False
        session.saved(fields, deleted)
        return True

    async def _left(self, session: Session, old: str, new: str) -> dict[bytes, bytes] | None:
        """Leave the old id for the new one; return what was there, None if the session was ended meanwhile."""
        answer = await self._leave(self._prefix + old, new, NOTE_MS)
        found = dict(zip(answer[::2], answer[1::2], strict=True))
        if CREATED in found:
            return found
        while MOVED in found:  # somebody else was first: he took along what there was
            found = await self._fields(found[MOVED].decode())
        return session.stored if CREATED in found else None

    async def _bring_along(
        self, session: Session, name: str, found: Mapping[bytes, bytes], written: Mapping[bytes, bytes], life_ms: int
    ) -> None:
        """Repeat under the new id what others have changed under the old one since it was read."""
        before = session.stored
        late = {key: raw for key, raw in found.items() if before.get(key) != raw and key not in (*written, TOUCHED)}
        gone = [key for key in before if key not in found and key not in written]
        if USER in late:
            await self._users.register(late[USER].decode(), name, life_ms)
        if late or gone:
            await self._write(self._save, name, late, gone, 0)

    async def _update(self, session: Session, key: str, fn: Callable[[Any], Any]) -> Any:
        if session.id is None or session.ended:
            session[key] = fn(session.get(key))
            return session[key]
        before = session.stored.get(field(key))
        value = session.replaced(key, before)
        while True:
            value = fn(value)
            raw = as_json(value)
            self._check_size(session, {field(key): raw}, [])
            answer = await self._swap(self._prefix + session.name, field(key), before or b"", raw)
            if answer == 1:
                return session.replaced(key, raw)
            if answer == 0:
                session[key] = value
                return value
            before = answer[0]
            value = session.replaced(key, before)

    async def _destroy(self, session: Session) -> None:
        if session.id is not None:
            await self._redis.delete(self._prefix + session.name)
            if USER in session.stored:
                await self._users.forget(session.stored[USER].decode(), session.name)

    async def _fields(self, name: str) -> dict[bytes, bytes]:
        return cast("dict[bytes, bytes]", await self._redis.hgetall(self._prefix + name))

    async def _write(
        self, script: Script, name: str, written: Mapping[bytes, bytes], deleted: Sequence[bytes], life_ms: int
    ) -> bool:
        fields = chain.from_iterable(written.items())
        return bool(await script(self._prefix + name, life_ms, 2 * len(written), *fields, *deleted))

    def _check_size(self, session: Session, written: Mapping[bytes, bytes], deleted: Sequence[bytes]) -> None:
        if session.size_with(written, deleted) > self._max_bytes:
            raise SessionTooLargeError(
                f"over {self._max_bytes} bytes of JSON in one session: keep large data elsewhere"
            )
