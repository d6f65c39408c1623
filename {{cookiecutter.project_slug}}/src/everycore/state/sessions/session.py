"""One visitor's session, as handlers meet it: a plain mapping of JSON values.

It knows what was read, changed and asked for, and no Redis: `sessions.py` writes it, before the response leaves.
"""

import json
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any, overload

# Our own fields; a visitor's have a ":" in front.
CREATED, TOUCHED, USER = b"created", b"touched", b"user"

encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode  # made once: `json.dumps` makes one each time
decode = json.JSONDecoder().decode


class Session(MutableMapping[str, Any]):
    """Decodes a value when it is read, and at the save compares as JSON only what may have changed.

    id: of the cookie; None until it is first saved. name: what Redis knows it by. stored: the fields as Redis has them.
    swap: what `await session.update(key, fn)` is done by.
    """

    def __init__(
        self,
        id: str | None,
        name: str,
        stored: dict[bytes, bytes],
        swap: Callable[["Session", str, Callable[[Any], Any]], Awaitable[Any]],
    ) -> None:
        self.id, self.name = id, name
        self.created = float(stored.get(CREATED) or time.time())
        self.touched = float(stored.get(TOUCHED) or self.created)
        self.ended = False
        self.moving = False  # to a new id, at the save
        # The presented id was left for another, whose cookie is on the way to the browser: a new session's would take
        # its place. So nothing is saved, unless somebody logs in here.
        self.superseded = False
        self.settled = False  # the headers have left, or there never are any: no cookie can be set
        self.stored = stored
        self._swap = swap
        self._user = stored[USER].decode() if USER in stored else None
        self._values: dict[str, Any] = {}
        self._suspects: set[str] = set()  # keys whose value may differ from the stored one
        self._deleted: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        if key in self._values:
            return self._values[key]
        raw = None if key in self._deleted or not isinstance(key, str) else self.stored.get(field(key))
        if raw is None:
            raise KeyError(key)
        value = self._values[key] = decode(raw.decode())
        if type(value) in (dict, list):
            self._suspects.add(key)  # it may be changed in place
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        if not isinstance(key, str):
            raise TypeError(f"session keys are strings, not {type(key).__name__}")
        self._values[key] = value
        self._suspects.add(key)
        self._deleted.discard(key)

    def __delitem__(self, key: str) -> None:
        if key not in self:
            raise KeyError(key)
        self._values.pop(key, None)
        self._suspects.discard(key)
        self._deleted.add(key)

    def __contains__(self, key: object) -> bool:
        if key in self._values:
            return True
        return isinstance(key, str) and key not in self._deleted and field(key) in self.stored

    def __iter__(self) -> Iterator[str]:
        keys = [name[1:].decode() for name in self.stored if name.startswith(b":")]
        yield from [key for key in keys if key not in self._deleted]
        yield from [key for key in self._values if field(key) not in self.stored]

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"<Session {dict(self)!r}>"

    def clear(self) -> None:
        for key in list(self):
            del self[key]

    @overload  # type: ignore[override] # fn makes it another call than a dict's
    def update(self, other: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), /, **values: Any) -> None: ...

    @overload
    def update(self, key: str, fn: Callable[[Any], Any], /) -> Awaitable[Any]: ...

    def update(self, /, *args: Any, **values: Any) -> Any:
        """A dict's own `update`; or `await session.update(key, fn)`: write `fn(old value or None)` at once, return it.

        Compare-and-set of the one key, so `fn` is called again whenever another request came between, and none of
        their updates is lost. An assignment of `key` that is not saved yet gives way to it. In a session that is not
        stored yet nobody can come between, and in one that was ended meanwhile it has no effect.
        """
        if len(args) == 2:
            return self._swap(self, *args)
        return super().update(*args, **values)

    @property
    def user(self) -> str | None:
        """Whose session it is, once somebody has logged in; `sessions_of` and `end_all` find it by that."""
        return self._user

    @user.setter
    def user(self, user: str | None) -> None:
        if user is not None and not (isinstance(user, str) and user):
            raise TypeError(f"a user's id is a string that is not empty, or None, not {user!r}")
        self._user = user
        self.superseded = self.superseded and user is None

    def regenerate(self) -> None:
        """Move to a new id at the save; the old one is dead. To be called when a visitor logs in (OWASP ASVS 3.2.1).

        Raises RuntimeError where no cookie can be set any more: in a websocket, or once the response has begun.
        """
        if self.settled:
            raise RuntimeError("no cookie can be set here: regenerate the session before the response begins")
        self.moving = self.id is not None
        self.superseded = False

    def destroy(self) -> None:
        """End the session: its data and its cookie go, and no request still running brings it back."""
        self.clear()
        self.ended = True

    def changes(self) -> tuple[dict[bytes, bytes], list[bytes]]:
        """Fields to write, as JSON, and fields to delete. Raises TypeError or ValueError for what is no JSON."""
        written = {}
        for key in self._suspects:
            name, raw = field(key), as_json(self._values[key])
            if self.stored.get(name) != raw:
                written[name] = raw
        deleted = [name for key in self._deleted if (name := field(key)) in self.stored]
        user = self.stored.get(USER)
        if self._user is None and user is not None:
            deleted.append(USER)
        elif self._user is not None and self._user.encode() != user:
            written[USER] = self._user.encode()
        return written, deleted

    def saved(self, written: Mapping[bytes, bytes], deleted: Iterable[bytes] = ()) -> None:
        """Take note of what Redis has now."""
        for name in deleted:
            self.stored.pop(name, None)
        self.stored.update(written)
        self.touched = float(self.stored.get(TOUCHED) or self.touched)

    def replaced(self, key: str, raw: bytes | None) -> Any:
        """Take note that somebody else wrote the key; return its value, None if there is none."""
        self._values.pop(key, None)
        self._suspects.discard(key)
        self._deleted.discard(key)
        if raw is None:
            self.stored.pop(field(key), None)
        else:
            self.stored[field(key)] = raw
        return self.get(key)

    def size_with(self, written: Mapping[bytes, bytes], deleted: Iterable[bytes] = ()) -> int:
        """Bytes of all fields once these changes are made."""
        after = {**self.stored, **written}
        for name in deleted:
            del after[name]
        return sum(map(len, after)) + sum(map(len, after.values()))


def field(key: str) -> bytes:
    return b":" + key.encode()


def as_json(value: Any) -> bytes:
    """Raises TypeError or ValueError for what is no JSON."""
    if type(value) is int:  # the encoder takes five times as long for it, and most sessions count something
        return b"%d" % value
    return encode(value).encode()
