"""Single flight: concurrent callers of one key in one worker share one task. Does not import: redis.

A call that began before its key was invalidated serves only the callers it has. Later callers start a new one.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any


class Call:
    """A running computation, and the keys in Redis that it depends on.

    `holding` says whether it holds, or may hold, the lock. Only then does a change of `lock` mean that it is lost.
    """

    def __init__(self, key: str, names: list[str], lock: str) -> None:
        self.key, self.names, self.lock = key, names, lock
        self.holding = False
        self.callers = 0
        self.changed = asyncio.Event()
        self.task: asyncio.Task[Any]

    async def wait_for_change(self, within: float) -> None:
        """Wait until one of the names is invalidated, at most `within` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self.changed.wait()
        self.changed.clear()


class SingleFlight:
    """Runs at most one joinable call for each key."""

    def __init__(self) -> None:
        self._joinable: dict[str, Call] = {}
        self._by_name: dict[str, set[Call]] = {}
        self._all: set[Call] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._joinable

    def start(self, key: str, names: list[str], lock: str, work: Callable[[Call], Coroutine[Any, Any, Any]]) -> None:
        """Start `work(call)` as the joinable call of `key`, which has none."""
        call = Call(key, names, lock)
        self._joinable[key] = call
        self._all.add(call)
        for name in (*names, lock):
            self._by_name.setdefault(name, set()).add(call)
        call.task = asyncio.create_task(work(call))
        call.task.add_done_callback(lambda task: self._finish(call))

    async def wait(self, key: str) -> Any:
        """Return or raise what the call does. It is cancelled when its last caller is."""
        call = self._joinable[key]
        call.callers += 1
        try:
            await asyncio.wait([call.task])  # does not cancel the task if this caller is cancelled
            return call.task.result()
        finally:
            call.callers -= 1
            if not call.callers and not call.task.done():
                self._detach(call)
                call.task.cancel()

    def invalidate(self, names: Iterable[str] | None) -> None:
        """Wake the calls that depend on these names (None: all), and let no later caller join them."""
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
        """Cancel the computations that still run, and wait for their end."""
        for call in self._all:
            call.task.cancel()
        await asyncio.gather(*(call.task for call in self._all), return_exceptions=True)

    def _detach(self, call: Call) -> None:
        if self._joinable.get(call.key) is call:
            del self._joinable[call.key]

    def _finish(self, call: Call) -> None:
        if not call.task.cancelled():
            call.task.exception()  # retrieved, or asyncio would log it if no caller is left
        self._detach(call)
        self._all.discard(call)
        for name in (*call.names, call.lock):
            self._by_name[name].discard(call)
            if not self._by_name[name]:
                del self._by_name[name]
