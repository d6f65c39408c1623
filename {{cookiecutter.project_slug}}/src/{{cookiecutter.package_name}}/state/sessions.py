"""Server-side sessions under Starlette's `request.session`.

The cookie holds a random id signed by itsdangerous; Redis holds a hash under the id's SHA-256, one JSON value
per top-level key. A save writes only the fields that changed, so two parallel requests of one visitor never
undo each other; it never brings back a session that was ended meanwhile; reading writes nothing.
"""

import hashlib
import json
import secrets
import time
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from itsdangerous import BadSignature, Signer
from redis.asyncio import Redis

# KEYS: the session. ARGV: "1" if it must exist, ttl in ms, number of fields to set, then field, value ..., then
# fields to delete. Returns 1 if saved, 0 if the session was ended meanwhile.
SAVE = """
if ARGV[1] == '1' and redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local sets = tonumber(ARGV[3])
for i = 4, 3 + 2 * sets, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
for i = 4 + 2 * sets, #ARGV do redis.call('HDEL', KEYS[1], ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
"""

LONGEST_COOKIE = 256  # characters; ours have 76
CREATED, TOUCHED = b"created", b"touched"  # our own fields; the visitor's have a ":" in front


class SessionTooLargeError(ValueError):
    """One session holds more than `max_bytes`."""


@dataclass(frozen=True)
class Lifetimes:
    """Seconds. A session ends after `idle` without a request, and after `absolute` in any case."""

    idle: float = 14 * 86400
    absolute: float = 90 * 86400


class Session(MutableMapping[str, Any]):
    """A mapping of JSON values: decoded when they are read, compared as JSON when they are saved."""

    def __init__(self, id: str | None, stored: dict[bytes, bytes]) -> None:
        self.id = id  # None until it is first saved
        self.ended = False
        self.created = float(stored.get(CREATED, time.time()))
        self.touched = float(stored.get(TOUCHED, self.created))
        self.replaces: str | None = None
        self._stored = {field[1:].decode(): raw for field, raw in stored.items() if field.startswith(b":")}
        self._values: dict[str, Any] = {}
        self._deleted: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        if key not in self._values:
            if key in self._deleted:
                raise KeyError(key)
            self._values[key] = json.loads(self._stored[key])
        return self._values[key]

    def __setitem__(self, key: str, value: Any) -> None:
        if not isinstance(key, str):
            raise TypeError(f"session keys are strings, not {type(key).__name__}")
        self._values[key] = value
        self._deleted.discard(key)

    def __delitem__(self, key: str) -> None:
        if key not in self:
            raise KeyError(key)
        self._values.pop(key, None)
        self._deleted.add(key)

    def __contains__(self, key: object) -> bool:
        return key in self._values or (key in self._stored and key not in self._deleted)

    def __iter__(self) -> Iterator[str]:
        yield from [key for key in self._stored if key not in self._deleted]
        yield from [key for key in self._values if key not in self._stored]

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"<Session {dict(self)!r}>"

    def regenerate(self) -> None:
        """Move to a new id at the save; the old one is dead. To be called when a visitor logs in."""
        if self.id is not None:
            self.replaces, self.id = self.id, None

    def destroy(self) -> None:
        """End the session: its data and its cookie go, and no request still running brings it back."""
        self._values.clear()
        self._deleted.update(self._stored)
        self.ended = True

    def changes(self) -> tuple[dict[str, bytes], set[str]]:
        """Fields to write, as JSON, and fields to delete."""
        encoded = {key: json.dumps(value, separators=(",", ":")).encode() for key, value in self._values.items()}
        if self.id is None:  # all of it, under a new id
            kept = {key: raw for key, raw in self._stored.items() if key not in self._deleted}
            return {**kept, **encoded}, set()
        changed = {key: raw for key, raw in encoded.items() if self._stored.get(key) != raw}
        return changed, self._deleted & self._stored.keys()

    def size_with(self, changed: dict[str, bytes]) -> int:
        """Bytes of keys and JSON values once `changed` is written."""
        kept = {key: raw for key, raw in self._stored.items() if key not in self._deleted}
        return sum(len(key.encode()) + len(raw) for key, raw in {**kept, **changed}.items())


class SessionStore:
    """Loads and saves sessions; knows the signature and the lifetimes, and no request.

    secret_keys: the first signs, all verify, so a key can be rotated. max_bytes: of one session's JSON values.
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
        self._signer = Signer(list(reversed(secret_keys)), salt="session", digest_method=hashlib.sha256)
        self._save = redis.register_script(SAVE)
        self.lifetimes = lifetimes or Lifetimes()
        self._max_bytes = max_bytes
        self._prefix = prefix

    def sign(self, id: str) -> str:
        return self._signer.sign(id).decode()

    async def load(self, cookie: str | None) -> Session:
        """The visitor's session; a new, empty one for no cookie, a forged one, or an id that Redis does not know."""
        id = self._verified(cookie)
        stored = cast("dict[bytes, bytes]", await self._redis.hgetall(self._key(id))) if id else {}
        if not stored or float(stored[CREATED]) + self.lifetimes.absolute < time.time():
            return Session(None, {})
        return Session(id, stored)

    async def save(self, session: Session) -> bool:
        """Write what changed; True if the session lives on under `session.id`. Raises SessionTooLargeError."""
        if session.replaces is not None:
            existed = await self._redis.delete(self._key(session.replaces))
            session.replaces = None
            if not existed:  # ended meanwhile: a new id must not bring it back
                return False
        if session.ended:
            if session.id is not None:
                await self._redis.delete(self._key(session.id))
            return False
        changed, deleted = session.changes()
        now = time.time()
        touch = now - session.touched > self.lifetimes.idle / 2
        if session.id is None and not changed:
            return False  # a visitor with nothing to remember costs no key and no cookie
        if session.id is not None and not (changed or deleted or touch):
            return True
        if session.size_with(changed) > self._max_bytes:
            raise SessionTooLargeError(
                f"over {self._max_bytes} bytes of JSON in one session: keep large data elsewhere"
            )
        fields: list[Any] = [part for key, raw in changed.items() for part in (f":{key}", raw)]
        fields += [TOUCHED, now]
        must_exist = session.id is not None
        if session.id is None:
            session.id = secrets.token_urlsafe(24)
            fields += [CREATED, session.created]
        left = min(self.lifetimes.idle, session.created + self.lifetimes.absolute - now)
        args = [int(must_exist), max(1, int(left * 1000)), len(fields) // 2, *fields, *(f":{key}" for key in deleted)]
        return bool(await self._save(keys=[self._key(session.id)], args=args))

    def _verified(self, cookie: str | None) -> str | None:
        if not cookie or len(cookie) > LONGEST_COOKIE or not cookie.isascii():
            return None
        try:
            return self._signer.unsign(cookie).decode()
        except BadSignature:
            return None

    def _key(self, id: str) -> str:
        # Hashed, so that who reads the database cannot forge a cookie with what is there.
        return self._prefix + hashlib.sha256(id.encode()).hexdigest()
