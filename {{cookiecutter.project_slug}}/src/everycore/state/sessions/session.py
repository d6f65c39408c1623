"""A visitor's session as handlers use it: Starlette's session, a dict of JSON values.

It records changes; store.py writes them to Redis before the response leaves. Does not import: redis.
"""

import json
import marshal
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Self, cast, overload

from starlette.middleware import sessions as starlette_sessions
from starlette.requests import HTTPConnection

# The store's own fields. The fields of a visitor's keys begin with ":"; one of those keys names the user.
CREATED, TOUCHED = b"created", b"touched"
USER_ID = "user_id"
USER = b":user_id"

UNCHANGEABLE = frozenset({str, int, float, bool, type(None), bytes})  # bytes are a list or dict not decoded yet
MISSING = object()
COLON, NESTED = b":"[0], b"[{"

encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode  # `json.dumps` would make one for each call
scan: Any = json.JSONDecoder()  # its `decode` takes three times as long as `scan_once`
scan = scan.scan_once


class SessionEndedError(RuntimeError):
    """The session ended or moved to a new id after this request loaded it, so the request's changes are not saved."""


class Record:
    """A session as stored in Redis, and what the save will do with it.

    Attributes:
        id: The id in the cookie; None until the session is first saved.
        name: The hashed id.
        stored: The fields in Redis.
        loaded: The visitor's keys and values.
        sealed: Whether lists or dicts among the values are still JSON, as bytes.
        nested: Lists and dicts that the handler has, and may change in place: their JSON and their `snapshot`.
        ended: The stored session is to be deleted.
        moving: The session is to move to a new id.
        superseded: The presented id was left for another one, whose cookie is on its way to the browser. A cookie of
            a new session would replace that one, so nothing is saved unless a user logs in.
        read_at: When the fields were read from Redis; Unix time.
        too_late: Why no cookie can be set any more.
        closed: Whether no change can be saved any more either.
    """

    sealed = ended = moving = superseded = closed = False
    read_at = 0.0
    too_late: str | None = None

    def __init__(self, id: str | None, name: str, stored: dict[bytes, bytes]) -> None:
        self.id, self.name, self.stored = id, name, stored
        self.created = float(stored.get(CREATED) or time.time())
        self.touched = float(stored.get(TOUCHED) or self.created)
        self.loaded: dict[str, Any] = {}
        self.nested: dict[str, tuple[bytes, object]] = {}
        for key, raw in stored.items():
            if key[0] == COLON:
                if raw.isdigit():
                    value: Any = int(raw)
                elif raw[0] in NESTED:
                    value, self.sealed = raw, True
                else:
                    value = scan(raw.decode(), 0)[0]
                self.loaded[key_of(key)] = value

    @property
    def user(self) -> str | None:
        """The user of the stored session."""
        return user_name(self.loaded.get(USER_ID))

    def saved(self, written: Mapping[bytes, bytes], deleted: Iterable[bytes], values: dict[str, Any]) -> None:
        """Record what Redis has now."""
        for name in deleted:
            self.stored.pop(name, None)
        self.stored.update(written)
        self.loaded = values
        if TOUCHED in written:
            self.touched = float(written[TOUCHED])


class Session(starlette_sessions.Session):
    """A visitor's session: a dict with string keys and JSON values, `request.session`.

    Assignments and deletions set `modified`. Changes inside a list or dict are found at the save, by comparing their
    JSON. Copies and unions are plain dicts.

    The key `user_id` names the user. When it changes, the session moves to a new id at the save (OWASP ASVS 3.2.1), and
    `SessionStore.sessions_of` and `end_all` find it. An assignment to `session.user_id` always moves the session.
    """

    _record: Record
    _swap: Any

    def __init__(
        self, record: Record, swap: Callable[[Record, str, Callable[[Any], Any]], Awaitable[bytes]] | None = None
    ) -> None:
        dict.__init__(self, record.loaded)
        attributes = self.__dict__
        attributes["_record"], attributes["_swap"] = record, swap
        if record.sealed:
            object.__setattr__(self, "__class__", SealedSession)

    def __setattr__(self, name: str, value: Any) -> None:
        if name != USER_ID:
            raise AttributeError(f"a session has no attribute {name!r} to set; set session[{name!r}] instead")
        super().__setattr__(name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)

    def mark_accessed(self) -> None:
        """Record that the response depends on the session."""
        self.__dict__["accessed"] = True

    def mark_modified(self) -> None:
        """Called before each change.

        Raises:
            RuntimeError: The change could not be saved any more.
        """
        record = self._record
        if record.too_late is not None and (record.closed or record.id is None or record.ended):
            raise RuntimeError(f"the session cannot be changed: {record.too_late}")
        attributes = self.__dict__
        attributes["accessed"] = attributes["modified"] = True

    def __ior__(self, other: Any, /) -> Self:  # type: ignore[override,misc]
        super().__ior__(other)
        return self

    def clear(self) -> None:
        """End the session, which logs the user out. No running request brings it back; later keys start a new one."""
        super().clear()
        self._record.ended = self._record.id is not None

    def destroy(self) -> None:
        """Do the same as `clear`."""
        self.clear()

    def regenerate(self) -> None:
        """Move the session to a new id at the save; the old id becomes invalid. A change of `user_id` does the same.

        Raises:
            RuntimeError: No cookie can be set, because the response has begun or the websocket was accepted.
        """
        self.mark_modified()
        if self._record.too_late is not None:
            raise RuntimeError(f"the session cannot move to a new id: {self._record.too_late}")
        self._record.moving = self._record.id is not None

    @property
    def user_id(self) -> str | int | None:
        """The logged-in user: the key `user_id`, or None."""
        return cast("str | int | None", self.get(USER_ID))

    @user_id.setter
    def user_id(self, user_id: str | int | None) -> None:
        if user_id is None:
            self.pop(USER_ID, None)
        elif user_name(user_id) is None:
            raise TypeError(f"session.user_id must be a non-empty string or an int, not {user_id!r}")
        else:
            self[USER_ID] = user_id
            self._record.moving = self._record.id is not None  # also if the same user logs in again

    @overload  # type: ignore[override] # fn makes it another call than a dict's
    def update(self, other: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), /, **values: Any) -> None: ...

    @overload
    def update(self, key: str, fn: Callable[[Any], Any], /) -> Awaitable[Any]: ...

    def update(self, /, *args: Any, **values: Any) -> Any:
        """Update as a dict does; or, with a key and a function, change one key atomically.

            total = await session.update("total", lambda old: (old or 0) + 1)

        The second form writes `fn(old value or None)` to Redis at once, by compare-and-set. If another request wrote
        the key meanwhile, `fn` is called again, so no update is lost. It replaces an unsaved assignment of the key.
        It also works after the response has begun.

        Returns:
            An awaitable of the new value (second form), or None.

        Raises:
            SessionEndedError: The session was ended meanwhile (second form).
        """
        if len(args) == 2:  # noqa: PLR2004 - a key and a function
            return self._update_stored(*args)
        return super().update(*args, **values)

    async def _update_stored(self, key: str, fn: Callable[[Any], Any]) -> Any:
        record = self._record
        if key == USER_ID:
            raise ValueError("user_id cannot be updated by a function; assign session.user_id instead")
        if record.id is None or record.ended:
            self[key] = fn(self.get(key))
            return self[key]
        raw = record.stored[field(key)] = await self._swap(record, key, fn)
        value = record.loaded[key] = self._decoded(key, raw)
        dict.__setitem__(self, key, value)
        return value

    def close(self, reason: str) -> None:
        """Refuse all later changes, because they could not be saved."""
        self._record.too_late, self._record.closed = reason, True

    def start_new(self) -> Record:
        """Make this the start of a new session, because the stored one was deleted."""
        record, too_late, closed = Record(None, "", {}), self._record.too_late, self._record.closed
        record.too_late, record.closed = too_late, closed
        self.__dict__["_record"] = record
        return record

    def changes(self) -> tuple[dict[bytes, bytes], list[bytes]]:
        """Return the fields to write, as JSON, and the fields to delete.

        Raises:
            TypeError, ValueError: A value is not JSON-serializable. The message names its key.
        """
        record = self._record
        nested = record.nested
        if not (nested or self.modified):
            return {}, []
        loaded, stored = record.loaded, record.stored
        written = {}
        for key, value in dict.items(self):
            changeable = type(value) not in UNCHANGEABLE
            if value is loaded.get(key, MISSING) and not changeable:
                continue
            name = field(key)
            before = stored.get(name)
            seen = snapshot(value) if changeable else None
            if changeable and nested.get(key) == (before, seen):
                continue
            raw = as_json(key, value)
            if changeable:
                nested[key] = raw, seen
            if raw != before:
                written[name] = raw
        return written, [name for key in loaded if key not in self and (name := field(key)) in stored]

    def _decoded(self, key: str, raw: bytes) -> Any:
        value = decode(raw)
        if type(value) not in UNCHANGEABLE:
            self._record.nested[key] = raw, snapshot(value)
        return value


class SealedSession(Session):
    """A session whose lists and dicts are still JSON, as bytes. Each is decoded when it is first read.

    Many pages read one key of a session that holds a full cart. A method that reads all values decodes all, and makes
    this an ordinary `Session`.
    """

    def __getitem__(self, key: str) -> Any:
        value = dict.__getitem__(self, key)
        return self._opened(key, value) if type(value) is bytes else value

    def __iter__(self) -> Iterator[str]:
        return dict.__iter__(self)  # without this override `dict(session)` would copy the bytes

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key, or `default` if there is none."""
        value = dict.get(self, key, default)
        return self._opened(key, value) if type(value) is bytes else value

    def pop(self, key: str, *default: Any) -> Any:
        """Remove a key and return its value, or the default if there is none."""
        self.get(key)
        return super().pop(key, *default)

    def setdefault(self, key: str, default: Any = None) -> Any:
        """Return the value of a key, which is set to `default` if there is none."""
        self.get(key)
        return super().setdefault(key, default)

    def _opened(self, key: str, value: bytes) -> Any:
        if value is not self._record.loaded.get(key):
            return value  # bytes that the handler assigned; the save refuses them
        opened = self._decoded(key, value)
        dict.__setitem__(self, key, opened)
        self.mark_accessed()
        return opened

    def _unsealed(self) -> Session:
        for key in self:
            self.get(key)
        object.__setattr__(self, "__class__", Session)
        return self


def _unsealing(name: str) -> Callable[..., Any]:
    def method(self: SealedSession, *args: Any) -> Any:
        return getattr(self._unsealed(), name)(*args)

    return method


for name in ("popitem", "items", "values", "copy", "__eq__", "__ne__", "__or__", "__ror__", "__repr__"):
    setattr(SealedSession, name, _unsealing(name))


def session(connection: HTTPConnection) -> Session:
    """Return the session of a request or websocket, typed as `Session`.

    Args:
        connection: The request or websocket.

    Raises:
        RuntimeError: The route has no SessionMiddleware.
    """
    found = connection.scope.get("session")
    if not isinstance(found, Session):
        raise RuntimeError("this route has no session: give it middleware=[Middleware(SessionMiddleware)]")
    found.mark_accessed()
    return found


def user_name(user_id: Any) -> str | None:
    """Return the user's name in keys, or None for an invalid id. 7 and "7" are the same user."""
    return str(user_id) if type(user_id) is int or (type(user_id) is str and user_id) else None


def snapshot(value: Any) -> object:
    """Return an object that equals another snapshot only if the JSON is the same. JSON takes four times as long."""
    try:
        return marshal.dumps(value, 2)  # from version 3 on, the bytes also depend on who else refers to the values
    except ValueError:  # a subclass of a list, for one
        return object()  # equals nothing, so that the JSON is compared


def decode(raw: bytes) -> Any:
    """Return the value that a field of the session stores."""
    return scan(raw.decode(), 0)[0]


@lru_cache(1024)
def key_of(field: bytes) -> str:
    """Return the visitor's key that a field stores."""
    return field[1:].decode()


def field(key: str) -> bytes:
    """Return the name of the field that stores a key."""
    if not isinstance(key, str):
        raise TypeError(f"session[{key!r}]: session keys must be strings, not {type(key).__name__}")
    return b":" + key.encode()


def as_json(key: str, value: Any) -> bytes:
    """Return the value as JSON; raise TypeError or ValueError, which name the key, if it is not JSON-serializable."""
    if type(value) is int:  # the encoder takes five times as long, and most sessions count something
        return b"%d" % value
    try:
        return encode(value).encode()
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"session[{key!r}] cannot be saved: {error}") from error
