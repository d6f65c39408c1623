"""Server-side sessions: a random id in a signed cookie, and a Redis hash under the id's SHA-256.

Each top-level key is a field with a JSON value. A save writes only the fields that changed, so parallel requests of a
visitor do not undo each other. A save never brings back a session that has ended. Reading writes nothing.
"""

import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, cast

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from everycore.state.client.script import Script
from everycore.state.expiring_names import ExpiringNames
from everycore.state.gathering import gather_all
from everycore.state.prefix import prefixed
from everycore.state.sessions.cookie import CookieSigner, SessionCookie, hash_id
from everycore.state.sessions.scripts import CHECK, CREATE, END, ENDED, LEFT_ALONE, MOVE, SAVE, SWAP
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

MOVED = b"moved"
ENDED_MEANWHILE = "the session was ended while this request ran, so its changes are not saved"
MARK_S = 60  # how long Redis knows that an id has moved or ended
USER_MARGIN_MS = 60_000  # an id outlives its session in its user's set, whichever of the two commands is delayed


class SessionTooLargeError(ValueError):
    """A session has more than `max_bytes` of JSON."""


@dataclass(frozen=True)
class Lifetimes:
    """How long sessions live, in seconds.

    Attributes:
        idle: A session ends after this time without a request. The time is renewed once half of it has passed, so that
            most reads write nothing; a session may therefore end up to half of it early.
        absolute: A session ends after this time in any case.
    """

    idle: float = 14 * 86400
    absolute: float = 90 * 86400


@dataclass(frozen=True)
class SessionRecord:
    """A session as `sessions_of` lists it.

    Attributes:
        hashed_id: SHA-256 of the id in the cookie.
        created: Unix time.
        touched: Unix time of the last request, exact to half of the idle time.
    """

    hashed_id: str
    created: float
    touched: float


class SessionStore:
    """Loads, saves and ends sessions, under `session:<hashed id>` and `session:user:<user>`.

    All methods raise redis-py's errors (see `UNAVAILABLE_ERRORS`) while Redis is unavailable.

    Args:
        redis: The client.
        secret_keys: Keys that sign cookies. The first signs and all verify, so a key can be rotated.
        lifetimes: How long sessions live.
        max_bytes: Maximum of JSON in one session.
        prefix: First part of the keys, after the client's prefix.
        cookie: Name and attributes of the cookie; by default for https only.
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
        self._send: Any = redis.execute_command
        self.cookie = cookie or SessionCookie()
        self.plain_http_logged = False  # by the middleware, once in a worker
        self._signer = CookieSigner(secret_keys)
        self._prefix = prefixed(redis, prefix)
        # An id is added before its session is written and removed after the session is deleted. A worker that dies in
        # between leaves an id without a session, never a session that cannot be found.
        self._users = ExpiringNames(redis, f"{self._prefix}user:")
        self.lifetimes = lifetimes or Lifetimes()
        self._max_bytes = max_bytes
        self._save, self._create, self._check = Script(redis, SAVE), Script(redis, CREATE), Script(redis, CHECK)
        self._compare, self._move, self._end = Script(redis, SWAP), Script(redis, MOVE), Script(redis, END)

    def sign(self, id: str) -> str:
        """Return the value of the cookie for a session id."""
        return self._signer.sign(id)

    async def load(self, cookie: str | None) -> Session:
        """Return the session of a cookie's value; an empty one for no or a forged cookie, or an unknown id."""
        known = self._signer.verify(cookie)
        if known is None:
            return Session(Record(None, "", {}), self._swap)
        id, name = known
        stored = await self._fields(name)
        if CREATED in stored:
            record = Record(id, name, stored)
            record.read_at = time.time()
            if record.created + self.lifetimes.absolute > record.read_at:
                return Session(record, self._swap)
        record = Record(None, "", {})
        record.superseded = MOVED in stored
        return Session(record, self._swap)

    def needs_save(self, session: Session) -> bool:
        """Whether `save` may have something to do: not after a request that only read, and no list or dict."""
        record = session._record
        return bool(session.modified or record.nested or record.moving or record.ended) or (
            time.time() - record.touched > self.lifetimes.idle / 2
        )

    async def save(self, session: Session) -> str | None:
        """Write what changed.

        Returns:
            The id of the stored session, or None if none is stored.

        Raises:
            SessionEndedError: The session was ended meanwhile, so the changes are not saved.
            SessionTooLargeError: The session would have more than `max_bytes` of JSON.
            TypeError, ValueError: A value is not JSON-serializable.
        """
        record = session._record
        if record.ended:
            await self._destroy(record)
            record = session.start_new()
        written, deleted = session.changes()
        now = time.time()
        renewal_due = now - record.touched > self.lifetimes.idle / 2
        if not (written or deleted or renewal_due or record.moving):
            return record.id
        if record.id is None and not written:
            return None  # an empty session needs no key and no cookie
        # Now, because a task of the handler may assign more before Redis answers. `dict.copy` decodes what is sealed.
        values = dict(dict.items(session)) if record.sealed else dict.copy(session)
        user_id, stored_id = values.get(USER_ID), record.loaded.get(USER_ID)
        user = previous = user_name(user_id)
        if user_id is not stored_id:
            previous = user_name(stored_id)
        moving = record.id is not None and (record.moving or (user is not None and user != previous))
        if record.superseded and user is None:
            raise SessionEndedError("the session moved to a new id while this request was on its way")
        self._check_size(record.stored, written, deleted)
        life_ms = 0  # keep the TTL
        if renewal_due or moving or record.id is None:
            life = min(self.lifetimes.idle, record.created + self.lifetimes.absolute - now)
            life_ms = max(1, int(life * 1000))
        if record.id is None or moving:
            if record.too_late is not None:
                raise RuntimeError(f"the session cannot move to a new id: {record.too_late}")
            return await self._save_as_new(record, values, written, deleted, life_ms)
        if renewal_due:
            written[TOUCHED] = b"%.3f" % now
        if user is not None and renewal_due:
            await self._users.add(user, record.name, life_ms + USER_MARGIN_MS)
        if not await _unless_ended(self._write_if_there(record, written, deleted, life_ms, now)):
            if deleted or any(name != TOUCHED for name in written):
                raise SessionEndedError(ENDED_MEANWHILE)
            return None
        if previous is not None and user is None:
            await self._users.remove(previous, record.name)
        record.saved(written, deleted, values)
        return record.id

    def record_of(self, session: Session) -> SessionRecord | None:
        """Return this session as `sessions_of` lists it, or None if it is not stored."""
        record = session._record
        return None if record.id is None else SessionRecord(record.name, record.created, record.touched)

    async def sessions_of(self, user: str | int) -> list[SessionRecord]:
        """Return the user's sessions, the oldest first."""
        names = await self._users.names(str(user))
        found = await gather_all(*map(self._fields, names))
        records = [
            SessionRecord(name, float(stored[CREATED]), float(stored[TOUCHED]))
            for name, stored in zip(names, found, strict=True)
            if CREATED in stored and Record(None, name, stored).user == str(user)
        ]
        return sorted(records, key=lambda record: record.created)

    async def end_all(self, user: str | int, keep: Session | None = None) -> int:
        """End all sessions of a user. No running request brings one back, and a login being saved is ended too.

        Args:
            user: The value of `session.user_id`.
            keep: A session that is not ended.

        Returns:
            How many sessions were ended.
        """
        user = str(user)
        kept = keep._record.name if keep is not None else None
        names = [name for name in await self._users.names(user) if name != kept]
        whose = as_json(USER_ID, user), user
        ends = await gather_all(*(self._end(self._prefix + name, *whose, MARK_S * 1000) for name in names))
        await self._users.remove(user, *(name for name, end in zip(names, ends, strict=True) if end != LEFT_ALONE))
        return ends.count(ENDED)

    async def _save_as_new(
        self,
        record: Record,
        values: dict[str, Any],
        written: dict[bytes, bytes],
        deleted: list[bytes],
        life_ms: int,
    ) -> str:
        """Write the session under a new id, then leave the old id, if there is one.

        An outage between the two steps loses nothing, because the browser still has the old id, which is valid. Two
        parallel moves make two sessions, and the browser keeps the cookie that arrives last; so a login whose first
        response was not read (a double click) is not lost. If the first new session was ended since, the second is too.
        """
        old, id = record.name, secrets.token_urlsafe(24)
        name = hash_id(id)
        kept = {key: raw for key, raw in record.stored.items() if key not in deleted}
        fields = {**kept, **written, CREATED: b"%.3f" % record.created, TOUCHED: b"%.3f" % time.time()}
        user = user_name(values.get(USER_ID))
        if user is not None:
            await self._users.add(user, name, life_ms + USER_MARGIN_MS)
        if not await self._write(self._create, name, fields, [], life_ms):
            raise SessionEndedError(ENDED_MEANWHILE)
        if old:
            found = await self._leave_old_id(record, old, name)
            if found is None:
                await self._redis.delete(self._prefix + name)
                raise SessionEndedError(ENDED_MEANWHILE)
            await self._copy_late_changes(record, name, found, written, life_ms)
            if record.user is not None:
                await self._users.remove(record.user, old)
        record.id, record.name, record.moving, record.superseded = id, name, False, False
        record.saved(fields, deleted, values)
        return id

    async def _leave_old_id(self, record: Record, old: str, new: str) -> dict[bytes, bytes] | None:
        """Leave the old id for the new one; return the fields found there, or None if the session has ended."""
        answer = await _unless_ended(self._move(self._prefix + old, new, MARK_S * 1000))
        if answer:
            return dict(zip(answer[::2], answer[1::2], strict=True))
        found = await self._fields(old)
        while MOVED in found:  # another request moved it first, with its fields
            found = await self._fields(found[MOVED].decode())
        return record.stored if CREATED in found else None

    async def _copy_late_changes(
        self, record: Record, name: str, found: Mapping[bytes, bytes], written: Mapping[bytes, bytes], life_ms: int
    ) -> None:
        """Repeat under the new id what other requests changed under the old one after it was loaded."""
        before = record.stored
        changed_meanwhile = {
            key: raw for key, raw in found.items() if before.get(key) != raw and key not in (*written, TOUCHED)
        }
        deleted_meanwhile = [key for key in before if key not in found and key not in written]
        if USER in changed_meanwhile and (user := user_name(decode(changed_meanwhile[USER]))) is not None:
            await self._users.add(user, name, life_ms + USER_MARGIN_MS)
        if changed_meanwhile or deleted_meanwhile:
            await _unless_ended(self._write(self._save, name, changed_meanwhile, deleted_meanwhile, 0))

    async def _swap(self, record: Record, key: str, fn: Callable[[Any], Any]) -> bytes:
        """Write `fn(stored value or None)` under a key of a stored session; return it as JSON."""
        name, stored = field(key), dict(record.stored)
        while True:
            before = stored.get(name)
            raw = as_json(key, fn(None if before is None else decode(before)))
            self._check_size(stored, {name: raw}, [])
            answer = await _unless_ended(self._compare(self._prefix + record.name, name, before or b"", raw))
            if answer == 1:
                return raw
            if answer == 0:
                raise SessionEndedError(ENDED_MEANWHILE)
            stored.pop(name, None)
            if answer[0] is not None:
                stored[name] = answer[0]

    async def _destroy(self, record: Record) -> None:
        await self._redis.set(self._prefix + record.name, b"", ex=MARK_S)
        if record.user is not None:
            await self._users.remove(record.user, record.name)

    async def _fields(self, name: str) -> dict[bytes, bytes]:
        """Return the fields of a session; or, under MOVED, the name to which it has moved."""
        stored = await _unless_ended(self._send("HGETALL", self._prefix + name))
        if stored == 0:
            mark = await self._redis.get(self._prefix + name)
            stored = {MOVED: mark} if mark else {}
        return cast("dict[bytes, bytes]", stored)

    async def _write_if_there(
        self, record: Record, written: Mapping[bytes, bytes], deleted: Sequence[bytes], life_ms: int, now: float
    ) -> bool:
        """Write to a session, if it is there; return whether it was written."""
        # HSET takes half of the script's time in Redis. It is safe while the session cannot expire, and while Redis has
        # the mark of every session that ended or moved after this request read it.
        expires = min(record.touched + self.lifetimes.idle, record.created + self.lifetimes.absolute)
        if deleted or life_ms or now - record.read_at > MARK_S / 2 or expires - now < MARK_S / 2:
            return bool(await self._write(self._save, record.name, written, deleted, life_ms))
        new = len(written.keys() - record.stored.keys())
        # Redis counts the fields that are new to it. With one that was there, the count tells whether the session was.
        fields = written if new < len(written) else {**written, TOUCHED: record.stored[TOUCHED]}
        key = self._prefix + record.name
        made = await self._send("HSET", key, *chain.from_iterable(fields.items()))
        return bool(made == new or await self._check(key))

    def _write(
        self, script: Script, name: str, written: Mapping[bytes, bytes], deleted: Sequence[bytes], life_ms: int
    ) -> Awaitable[int]:
        fields = chain.from_iterable(written.items())
        return script(self._prefix + name, life_ms, 2 * len(written), *fields, *deleted)

    def _check_size(
        self, stored: Mapping[bytes, bytes], written: Mapping[bytes, bytes], deleted: Sequence[bytes]
    ) -> None:
        growth = 0
        for name, raw in written.items():
            growth += len(raw) - len(stored[name]) if name in stored else len(name) + len(raw)
        for name in deleted:
            growth -= len(name) + len(stored[name])
        # All fields are counted only if they grow.
        if growth > 0 and growth + sum(map(len, chain.from_iterable(stored.items()))) > self._max_bytes:
            raise SessionTooLargeError(
                f"the session would have more than {self._max_bytes} bytes of JSON; store large data elsewhere"
            )


async def _unless_ended(answer: Awaitable[Any]) -> Any:
    """Return Redis' reply, or 0 if the session has a mark, because it has ended or moved."""
    try:
        return await answer
    except ResponseError as error:
        if "WRONGTYPE" not in str(error):
            raise
        return 0
