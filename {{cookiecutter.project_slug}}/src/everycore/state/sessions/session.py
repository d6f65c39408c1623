"""One visitor's session, as handlers meet it: Starlette's own session, a dict of JSON values.

It knows what was read, changed and asked for, and no Redis: `sessions.py` writes it, before the response leaves.
"""

import json
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any, Self, cast, overload

from starlette.middleware import sessions as starlette_sessions
from starlette.requests import HTTPConnection

# Our own fields; a visitor's have a ":" in front. One of the visitor's says whose session it is.
CREATED, TOUCHED = b"created", b"touched"
USER_ID = "user_id"
USER = b":user_id"

SCALARS = frozenset({str, int, float, bool, type(None)})
MISSING = object()
COLON, NESTED = b":"[0], b"[{"

encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode  # made once: `json.dumps` makes one each time
scan: Any = json.JSONDecoder()  # what its `decode` does besides costs twice as much again
scan = scan.scan_once


class SessionEndedError(RuntimeError):
    """The session has ended or moved to a new id since this request read it: what the request changed is not saved."""


class Record:
    """A session as Redis has it, and what becomes of it at the save.

    id: of the cookie; None until it is first saved. name: what Redis knows it by. stored: the fields as Redis has them.
    loaded: the visitor's keys. sealed: whether there are lists or dicts among them, which are still JSON, as bytes.
    """

    __slots__ = (
        *("created", "id", "loaded", "name", "sealed", "stored", "touched"),
        *("closed", "ended", "moving", "superseded", "too_late"),
    )

    def __init__(self, id: str | None, name: str, stored: dict[bytes, bytes]) -> None:
        self.id, self.name, self.stored = id, name, stored
        self.created = float(stored.get(CREATED) or time.time())
        self.touched = float(stored.get(TOUCHED) or self.created)
        self.loaded: dict[str, Any] = {}
        self.sealed = False
        for field, raw in stored.items():
            if field[0] == COLON:
                value: Any = int(raw) if raw.isdigit() else scan(raw.decode(), 0)[0] if raw[0] not in NESTED else raw
                self.sealed = self.sealed or value is raw
                self.loaded[field[1:].decode()] = value
        self.ended = False  # what Redis has is to be deleted
        self.moving = False  # to a new id
        # The presented id was left for another, whose cookie is on the way to the browser: a new session's would take
        # its place. So nothing is saved, unless somebody logs in here.
        self.superseded = False
        self.too_late: str | None = None  # why no cookie can be set any more
        self.closed = False  # no change can be saved any more either

    @property
    def user(self) -> str | None:
        """Whose session Redis has."""
        return user_name(self.loaded.get(USER_ID))

    def saved(self, written: Mapping[bytes, bytes], deleted: Iterable[bytes], values: dict[str, Any]) -> None:
        """Take note of what Redis has now."""
        for name in deleted:
            self.stored.pop(name, None)
        self.stored.update(written)
        self.loaded = values
        self.touched = float(self.stored.get(TOUCHED) or self.touched)

    def size_with(self, written: Mapping[bytes, bytes], deleted: Iterable[bytes] = ()) -> int:
        """Bytes of all fields once these changes are made."""
        after = {**self.stored, **written}
        for name in deleted:
            del after[name]
        return sum(map(len, after)) + sum(map(len, after.values()))


class Session(starlette_sessions.Session):
    """A dict in all that is read, for a visitor's keys are in it from the start.

    What is assigned or deleted sets `modified`; what is changed inside a list or dict is found at the save, where the
    JSON of those is compared. Copies and unions are plain dicts. The key `user_id` says whose session it is: where it
    changes, the session moves to a new id at the save (OWASP ASVS 3.2.1), and `sessions_of` and `end_all` find it.
    `session.user_id = ...` moves it in any case.

    swap: what `await session.update(key, fn)` is done by.
    """

    _record: Record
    _swap: Any

    def __init__(
        self, record: Record, swap: Callable[["Session", str, Callable[[Any], Any]], Awaitable[Any]] | None = None
    ) -> None:
        super().__init__(record.loaded)
        self.__dict__["_record"], self.__dict__["_swap"] = record, swap
        if record.sealed:
            object.__setattr__(self, "__class__", SealedSession)

    def __setattr__(self, name: str, value: Any) -> None:
        if name != USER_ID:
            raise AttributeError(f"a session has no attribute {name!r} that can be set: set session[{name!r}]")
        super().__setattr__(name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)

    def mark_accessed(self) -> None:
        self.__dict__["accessed"] = True

    def mark_modified(self) -> None:
        """Called before each change. Raises RuntimeError where it could not be saved."""
        record = self._record
        if record.too_late is not None and (record.closed or record.id is None or record.ended):
            raise RuntimeError(f"the session cannot be changed here: {record.too_late}")
        self.__dict__.update(accessed=True, modified=True)

    def __ior__(self, other: Any, /) -> Self:  # type: ignore[override,misc]
        super().__ior__(other)
        return self

    def clear(self) -> None:
        """End the session, which logs out: no request still running brings it back. What is set later is a new one."""
        super().clear()
        self._record.ended = self._record.id is not None

    def destroy(self) -> None:
        """Do the same as `clear`."""
        self.clear()

    def regenerate(self) -> None:
        """Move to a new id at the save; the old one is dead. A change of `user_id` does so by itself.

        Raises RuntimeError where no cookie can be set: once the response has begun or the websocket is accepted.
        """
        self.mark_modified()
        if self._record.too_late is not None:
            raise RuntimeError(f"the session cannot move to a new id here: {self._record.too_late}")
        self._record.moving = self._record.id is not None

    @property
    def user_id(self) -> str | int | None:
        """Whose session it is, once somebody has logged in: the key `user_id`."""
        return cast("str | int | None", self.get(USER_ID))

    @user_id.setter
    def user_id(self, user_id: str | int | None) -> None:
        if user_id is None:
            self.pop(USER_ID, None)
        elif user_name(user_id) is None:
            raise TypeError(f"session.user_id is a string that is not empty or a whole number, not {user_id!r}")
        else:
            self[USER_ID] = user_id
            self._record.moving = self._record.id is not None  # also for who logs in again

    @overload  # type: ignore[override] # fn makes it another call than a dict's
    def update(self, other: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), /, **values: Any) -> None: ...

    @overload
    def update(self, key: str, fn: Callable[[Any], Any], /) -> Awaitable[Any]: ...

    def update(self, /, *args: Any, **values: Any) -> Any:
        """A dict's own `update`; or `await session.update(key, fn)`: write `fn(old value or None)` at once, return it.

        Compare-and-set of the one key, so `fn` is called again whenever another request came between, and none of
        their updates is lost. An assignment of `key` that is not saved yet gives way to it. In a session that is not
        stored yet nobody can come between. It also works after the response has begun. Raises SessionEndedError if the
        session was ended meanwhile.
        """
        if len(args) == 2:
            return self._swap(self, *args)
        return super().update(*args, **values)

    def close(self, reason: str) -> None:
        """Let no change be made any more, as it could not be saved."""
        self._record.too_late, self._record.closed = reason, True

    def start_new(self) -> Record:
        """Make what is in it a new session's, as the old one has ended."""
        record, too_late, closed = Record(None, "", {}), self._record.too_late, self._record.closed
        record.too_late, record.closed = too_late, closed
        self.__dict__["_record"] = record
        return record

    def changes(self) -> tuple[dict[bytes, bytes], list[bytes]]:
        """Fields to write, as JSON, and fields to delete. Raises TypeError or ValueError for what is no JSON."""
        if not self.accessed:
            return {}, []
        loaded, stored = self._record.loaded, self._record.stored
        written = {}
        for key, value in dict.items(self):
            if (type(value) in SCALARS or type(value) is bytes) and value is loaded.get(key, MISSING):
                continue
            name, raw = field(key), as_json(key, value)
            if stored.get(name) != raw:
                written[name] = raw
        deleted = (
            [name for key in loaded if key not in self and (name := field(key)) in stored] if self.modified else []
        )
        return written, deleted

    def replace(self, key: str, raw: bytes | None) -> Any:
        """Take note of what Redis has under a key now; return its value, None if there is none."""
        record = self._record
        if raw is None:
            record.stored.pop(field(key), None)
            record.loaded.pop(key, None)
            return dict.pop(self, key, None)
        record.stored[field(key)] = raw
        value = record.loaded[key] = decode(raw)
        dict.__setitem__(self, key, value)
        return value


class SealedSession(Session):
    """A session whose lists and dicts are still JSON, as bytes: each is decoded when it is first read.

    Many pages read one key of a session with a full cart in it. What reads all makes the session an ordinary one.
    """

    __hash__ = None  # type: ignore[assignment] # as of every dict

    def __getitem__(self, key: str) -> Any:
        value = dict.__getitem__(self, key)
        return self._opened(key, value) if type(value) is bytes else value

    def __iter__(self) -> Iterator[str]:
        return dict.__iter__(self)  # defined here, or `dict(session)` would copy the bytes

    def get(self, key: str, default: Any = None) -> Any:
        value = dict.get(self, key, default)
        return self._opened(key, value) if type(value) is bytes else value

    def pop(self, key: str, *default: Any) -> Any:
        self.get(key)
        return super().pop(key, *default)

    def setdefault(self, key: str, default: Any = None) -> Any:
        self.get(key)
        return super().setdefault(key, default)

    def _opened(self, key: str, value: bytes) -> Any:
        if value is not self._record.loaded.get(key):
            return value  # the handler's own, which will be refused at the save
        opened = decode(value)
        dict.__setitem__(self, key, opened)
        self.mark_accessed()
        return opened

    def _unsealed(self) -> Session:
        for key in self:
            self.get(key)
        object.__setattr__(self, "__class__", Session)
        return self

    def popitem(self) -> tuple[str, Any]:
        return self._unsealed().popitem()

    def items(self) -> Any:
        return self._unsealed().items()

    def values(self) -> Any:
        return self._unsealed().values()

    def copy(self) -> dict[str, Any]:
        return self._unsealed().copy()

    def __eq__(self, other: object) -> bool:
        return self._unsealed() == other

    def __or__(self, other: Any) -> Any:
        return self._unsealed() | other

    def __ror__(self, other: Any) -> Any:
        return other | self._unsealed()

    def __repr__(self) -> str:
        return repr(self._unsealed())


def session(connection: HTTPConnection) -> Session:
    """The session of a request or websocket, typed. Raises RuntimeError on a route without the SessionMiddleware."""
    found = connection.scope.get("session")
    if not isinstance(found, Session):
        raise RuntimeError("this route has no session: give it middleware=[Middleware(SessionMiddleware)]")
    found.mark_accessed()
    return found


def user_name(user_id: Any) -> str | None:
    """The user's name among our keys: 7 and "7" are the same user. None for what names nobody."""
    return str(user_id) if type(user_id) is int or (type(user_id) is str and user_id) else None


def decode(raw: bytes) -> Any:
    return scan(raw.decode(), 0)[0]


def field(key: str) -> bytes:
    if not isinstance(key, str):
        raise TypeError(f"session[{key!r}]: session keys are strings, not {type(key).__name__}")
    return b":" + key.encode()


def as_json(key: str, value: Any) -> bytes:
    """Raises TypeError or ValueError, which name the key, for what is no JSON."""
    if type(value) is int:  # the encoder takes five times as long for it, and most sessions count something
        return b"%d" % value
    try:
        return encode(value).encode()
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"session[{key!r}] cannot be saved: {error}") from error
