"""Who finds out what in this worker: those who want the same wait for one task. It knows no Redis and no value.

A call that began before its key was changed must not answer who comes after: it is left to those it has.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any


class Call:
    """A task, and the names of the keys in Redis it depends on.

    holding: whether it has, or may have, the lock. Only then does a change of `lock` mean that it has lost it.
    """

    def __init__(self, key: str, names: list[str], lock: str) -> None:
        self.key, self.names, self.lock = key, names, lock
        self.holding = False
        self.callers = 0
        self.changed = asyncio.Event()
        self.task: asyncio.Task[Any]

    async def wait_for_change(self, within: float) -> None:
        """Until one of the names is heard of, at most `within` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self.changed.wait()
        self.changed.clear()


class SingleFlight:
    """At most one joinable call for a key."""

    def __init__(self) -> None:
        self._joinable: dict[str, Call] = {}
        self._by_name: dict[str, set[Call]] = {}
        self._all: set[Call] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._joinable

    def start(self, key: str, names: list[str], lock: str, work: Callable[[Call], Coroutine[Any, Any, Any]]) -> None:
        """Have `work(call)` run under `key`, which has no joinable call."""
        call = Call(key, names, lock)
        self._joinable[key] = call
        self._all.add(call)
        for name in (*names, lock):
            self._by_name.setdefault(name, set()).add(call)
        call.task = asyncio.create_task(work(call))
        call.task.add_done_callback(lambda task: self._finish(call))

    async def wait(self, key: str) -> Any:
        """What the call returns or raises. One who is cancelled leaves it to the others; the last one ends it."""
        call = self._joinable[key]
        call.callers += 1
        try:
            await asyncio.wait([call.task])  # which leaves it alone when we are cancelled
            return call.task.result()
        finally:
            call.callers -= 1
            if not call.callers and not call.task.done():
                self._detach(call)
                call.task.cancel()

    def invalidate(self, names: Iterable[str] | None) -> None:
        """These keys have changed, or all may have: wake who waits for them, and let nobody join what is older."""
        if names is None:
            for call in self._all:
                call.changed.set()
                self._detach(call)
            return
        for name in names:
            for call in self._by_name.get(name, ()):
                call.changed.set()
                if call.holding or name != call.lock:
                    self._detach(call)

    async def aclose(self) -> None:
        for call in self._all:
            call.task.cancel()
        await asyncio.gather(*(call.task for call in self._all), return_exceptions=True)

    def _detach(self, call: Call) -> None:
        if self._joinable.get(call.key) is call:
            del self._joinable[call.key]

    def _finish(self, call: Call) -> None:
        if not call.task.cancelled():
            call.task.exception()  # seen, also when everybody has left
        self._detach(call)
        self._all.discard(call)
        for name in (*call.names, call.lock):
            self._by_name[name].discard(call)
            if not self._by_name[name]:
                del self._by_name[name]
