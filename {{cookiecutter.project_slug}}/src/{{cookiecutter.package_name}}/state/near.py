"""What a worker remembers of the cache, in its memory: at memory speed, and true, because Redis says what has changed.

    reader   --GET k-->   <--v1--                      <--invalidate k--
    near                  keeps v1, as it is read      drops it
    redis              v1          somebody writes v2

An answer kept as it is read, in the order of the stream, is never overtaken by the invalidation that ends it. Kept
after an `await` it can be, and is then stale for good. This room knows names and sizes, and nothing of what it keeps.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

MOST_ENTRIES = 10_000
MOST_BYTES = 16 * 1024 * 1024
OVERHEAD = 800  # bytes that an entry with one tag takes besides its name and its JSON, measured

# Seconds for which nothing is believed that no answer has confirmed: a connection that died without a word brings no
# invalidation either. Where all hits are near, it costs one command in so long.
TRUST = 1.0


class Near:
    """Items by the name of their key in Redis, the least recently used dropped first. A `Listener`.

    heard: called with the names of the keys that changed, or None for all of them, after they are dropped.
    """

    def __init__(
        self,
        heard: Callable[[Iterable[str] | None], object],
        most_entries: int = MOST_ENTRIES,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self.bytes = 0
        self._heard = heard
        self._most_entries, self._most_bytes = most_entries, most_bytes
        self._kept: OrderedDict[str, tuple[Any, float, int]] = OrderedDict()
        self._true_at = float("-inf")

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, name: str, now: float) -> Any:
        """What is kept under `name` and not over at `now`, on the monotonic clock; else None."""
        kept = self._kept.get(name)
        if kept is None or now >= self._true_at + TRUST:
            return None
        if now >= kept[1]:  # Redis' word of what expires may come late
            self._drop(name)
            return None
        self._kept.move_to_end(name)
        return kept[0]

    def keep(self, name: str, item: Any, size: int, until: float) -> None:
        """Remember what an answer brought: to be called as it is read (`in_order`).

        size: bytes of what is kept. until: on the monotonic clock.
        """
        self._drop(name)
        size += len(name) + OVERHEAD
        if size > self._most_bytes:
            return
        self._kept[name] = item, until, size
        self.bytes += size
        while len(self._kept) > self._most_entries or self.bytes > self._most_bytes:
            self._drop(next(iter(self._kept)))

    def confirm(self, asked: float) -> None:
        """An answer came to what was asked at `asked`: every invalidation from before that has been heard."""
        self._true_at = max(self._true_at, asked)

    def drop(self, names: Iterable[str]) -> None:
        for name in names:
            self._drop(name)

    def invalidated(self, keys: list[Any] | None) -> None:
        if keys is None:  # a flush
            self._clear()
            self._heard(None)
            return
        # A foreign key under our prefix may be any bytes.
        names = [key if isinstance(key, str) else key.decode(errors="replace") for key in keys]
        self.drop(names)
        self._heard(names)

    def lost(self) -> None:
        self._true_at = float("-inf")
        self._clear()
        self._heard(None)

    def _drop(self, name: str) -> None:
        if kept := self._kept.pop(name, None):
            self.bytes -= kept[2]

    def _clear(self) -> None:
        self._kept.clear()
        self.bytes = 0
