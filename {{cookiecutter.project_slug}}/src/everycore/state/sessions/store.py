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
from everycore.state.prefix import prefixed
from everycore.state.sessions.cookie import CookieSigner, SessionCookie, hash_id
from everycore.state.sessions.scripts import CREATE, END, ENDED, LEFT_ALONE, MOVE, SAVE, SWAP
from everycore.state.sessions.session import (
    CREATED,
    TOUCHED,
    USER,
    USER_ID,
    Record,
    Session,
    SessionEndedError,
    as_json,
    decode,
    field,
    user_name,
)
from everycore.state.sessions.user_index import UserIndex

MOVED = b"moved"
ENDED_MEANWHILE = "the session was ended while this request ran, so its changes are not saved"
TOMBSTONE_TTL_MS = (
    60_000  # for how long it is told that an id was left or ended: longer than a request that began before
)


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

    secret_keys: the first signs, all verify, so a key can be rotated. max_bytes: of one session's fields, JSON. cookie:
    by default one over https. While Redis is away all of it raises what redis-py raises, see UNAVAILABLE_ERRORS.
    """

    def __init__(
        self,
        redis: Redis,
        secret_keys: Sequence[str],
        lifetimes: Lifetimes | None = None,
        *,
        max_bytes: int = 64 * 1024,
        prefix: str = "session:",
        cookie: SessionCookie | None = None,
    ) -> None:
        self._redis = redis
        self.cookie = cookie or SessionCookie()
        self._signer = CookieSigner(secret_keys)
        self._prefix = prefixed(redis, prefix)
        self._users = UserIndex(redis, f"{self._prefix}user:")
        self.lifetimes = lifetimes or Lifetimes()
        self._max_bytes = max_bytes
        self._save, self._create = Script(redis, SAVE), Script(redis, CREATE)
        self._swap, self._move, self._end = Script(redis, SWAP), Script(redis, MOVE), Script(redis, END)

    def sign(self, id: str) -> str:
        return self._signer.sign(id)

    async def load(self, cookie: str | None) -> Session:
        """The visitor's session; a new, empty one for no cookie, a forged one, or an id that Redis does not know."""
        known = self._signer.verify(cookie)
        if known is None:
            return Session(Record(None, "", {}), self._update)
        id, name = known
        stored = await self._fields(name)
        if CREATED in stored:
            record = Record(id, name, stored)
            if record.created + self.lifetimes.absolute > time.time():
                return Session(record, self._update)
        record = Record(None, "", {})
        # Its successor's cookie is on the way to the browser: one of a new session would take its place.
        record.superseded = MOVED in stored
        return Session(record, self._update)

    async def save(self, session: Session) -> str | None:
        """Write what changed; return the id under which the session lives on, None if it does not.

        Raises SessionEndedError if the changes have come too late, SessionTooLargeError, and TypeError or ValueError
        for what is no JSON.
        """
        record = session._record
        if record.ended:
            await self._destroy(record)
            record = session.start_new()
        written, deleted = session.changes()
        user = user_name(session.get(USER_ID))
        moving = record.id is not None and (record.moving or (user is not None and user != record.user))
        if record.superseded and user is None:
            if written:
                raise SessionEndedError("the session moved to a new id while this request was on its way")
            return None
        now = time.time()
        renewal_due = now - record.touched > self.lifetimes.idle / 2
        if not (written or deleted or renewal_due or moving):
            return record.id
        if record.id is None and not written:
            return None  # a visitor with nothing to remember costs no key and no cookie
        self._check_size(record, written, deleted)
        life = min(self.lifetimes.idle, record.created + self.lifetimes.absolute - now)
        life_ms = max(1, int(life * 1000))
        if record.id is None or moving:
            if record.too_late is not None:
                raise RuntimeError(f"the session cannot move to a new id here: {record.too_late}")
            return await self._save_as_new(session, written, deleted, now, life_ms)
        if renewal_due:
            written[TOUCHED] = b"%.3f" % now
        if user is not None and renewal_due:
            await self._users.register(user, record.name, life_ms)
        if not await self._write(self._save, record.name, written, deleted, life_ms if renewal_due else 0):
            if deleted or any(name != TOUCHED for name in written):
                raise SessionEndedError(ENDED_MEANWHILE)
            return None
        if record.user is not None and user is None:
            await self._users.forget(record.user, record.name)
        record.saved(written, deleted, dict(dict.items(session)))
        return record.id

    def record_of(self, session: Session) -> SessionRecord | None:
        """What `sessions_of` says of this session; None for one that is not stored."""
        record = session._record
        return None if record.id is None else SessionRecord(record.name, record.created, record.touched)

    async def sessions_of(self, user: str | int) -> list[SessionRecord]:
        """The user's living sessions, the oldest first."""
        names = await self._users.sessions(str(user))
        found = await asyncio.gather(*map(self._fields, names))
        records = [
            SessionRecord(name, float(stored[CREATED]), float(stored[TOUCHED]))
            for name, stored in zip(names, found, strict=True)
            if CREATED in stored and Record(None, name, stored).user == str(user)
        ]
        return sorted(records, key=lambda record: record.created)

    async def end_all(self, user: str | int, keep: Session | None = None) -> int:
        """Log the user out everywhere, but for the session `keep`; return how many sessions that were.

        No request still running brings one back, and a login that is being saved meanwhile is ended as well.
        """
        user = str(user)
        kept = keep._record.name if keep is not None else None
        names = [name for name in await self._users.sessions(user) if name != kept]
        whose = as_json(USER_ID, user), user
        ends = await asyncio.gather(*(self._end(self._prefix + name, *whose, TOMBSTONE_TTL_MS) for name in names))
        await self._users.forget(user, *(name for name, end in zip(names, ends, strict=True) if end != LEFT_ALONE))
        return ends.count(ENDED)

    async def _save_as_new(
        self, session: Session, written: dict[bytes, bytes], deleted: list[bytes], now: float, life_ms: int
    ) -> str:
        """Write it under a new id; then, if it has an old one, leave that.

        In this order an outage between them loses nothing: the browser still has the old id, and that is alive. Of two
        parallel moves each makes a session, and the browser keeps the cookie that comes last: a login whose first
        answer was never read (a double click) is not lost. If the first one's was ended since, so is the second's.
        """
        record = session._record
        old, id = record.name, secrets.token_urlsafe(24)
        name = hash_id(id)
        kept = {key: raw for key, raw in record.stored.items() if key not in deleted}
        fields = {**kept, **written, CREATED: b"%.3f" % record.created, TOUCHED: b"%.3f" % now}
        user = user_name(session.get(USER_ID))
        if user is not None:
            await self._users.register(user, name, life_ms)
        if not await self._write(self._create, name, fields, [], life_ms):
            raise SessionEndedError(ENDED_MEANWHILE)
        if old:
            found = await self._leave_old_id(record, old, name)
            if found is None:
                await self._redis.delete(self._prefix + name)
                raise SessionEndedError(ENDED_MEANWHILE)
            await self._copy_late_changes(record, name, found, written, life_ms)
            if record.user is not None:
                await self._users.forget(record.user, old)
        record.id, record.name, record.moving, record.superseded = id, name, False, False
        record.saved(fields, deleted, dict(dict.items(session)))
        return id

    async def _leave_old_id(self, record: Record, old: str, new: str) -> dict[bytes, bytes] | None:
        """Leave the old id for the new one; return what was there, None if the session was ended meanwhile."""
        answer = await self._move(self._prefix + old, new, TOMBSTONE_TTL_MS)
        found = dict(zip(answer[::2], answer[1::2], strict=True))
        if CREATED in found:
            return found
        while MOVED in found:  # somebody else was first: he took along what there was
            found = await self._fields(found[MOVED].decode())
        return record.stored if CREATED in found else None

    async def _copy_late_changes(
        self, record: Record, name: str, found: Mapping[bytes, bytes], written: Mapping[bytes, bytes], life_ms: int
    ) -> None:
        """Repeat under the new id what others have changed under the old one since it was read."""
        before = record.stored
        changed_meanwhile = {
            key: raw for key, raw in found.items() if before.get(key) != raw and key not in (*written, TOUCHED)
        }
        deleted_meanwhile = [key for key in before if key not in found and key not in written]
        if USER in changed_meanwhile and (user := user_name(decode(changed_meanwhile[USER]))) is not None:
            await self._users.register(user, name, life_ms)
        if changed_meanwhile or deleted_meanwhile:
            await self._write(self._save, name, changed_meanwhile, deleted_meanwhile, 0)

    async def _update(self, session: Session, key: str, fn: Callable[[Any], Any]) -> Any:
        record = session._record
        if key == USER_ID:
            raise ValueError("session.user_id is assigned, and not updated: that moves the session to a new id")
        if record.id is None or record.ended:
            session[key] = fn(session.get(key))
            return session[key]
        before = record.stored.get(field(key))
        value = session.replace(key, before)
        while True:
            raw = as_json(key, fn(value))
            self._check_size(record, {field(key): raw}, [])
            answer = await self._swap(self._prefix + record.name, field(key), before or b"", raw)
            if answer == 1:
                return session.replace(key, raw)
            if answer == 0:
                raise SessionEndedError(ENDED_MEANWHILE)
            before = answer[0]
            value = session.replace(key, before)

    async def _destroy(self, record: Record) -> None:
        await self._redis.delete(self._prefix + record.name)
        if record.user is not None:
            await self._users.forget(record.user, record.name)

    async def _fields(self, name: str) -> dict[bytes, bytes]:
        return cast("dict[bytes, bytes]", await self._redis.hgetall(self._prefix + name))

    async def _write(
        self, script: Script, name: str, written: Mapping[bytes, bytes], deleted: Sequence[bytes], life_ms: int
    ) -> bool:
        fields = chain.from_iterable(written.items())
        return bool(await script(self._prefix + name, life_ms, 2 * len(written), *fields, *deleted))

    def _check_size(self, record: Record, written: Mapping[bytes, bytes], deleted: Sequence[bytes]) -> None:
        if record.size_with(written, deleted) > self._max_bytes:
            raise SessionTooLargeError(
                f"over {self._max_bytes} bytes of JSON in one session: keep large data elsewhere"
            )
