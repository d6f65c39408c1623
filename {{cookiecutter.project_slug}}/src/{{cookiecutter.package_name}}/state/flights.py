"""Who finds out what in this worker: those who want the same wait for one task. It knows no Redis and no value.

A flight that began before its key was changed must not answer who comes after: it is left to those it has.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any


class Flight:
    """A task, and the names of the keys in Redis it depends on.

    holding: whether it has, or may have, the lock. Only then does a change of `lock` mean that it has lost it.
    """

    def __init__(self, key: str, names: list[str], lock: str) -> None:
        self.key, self.names, self.lock = key, names, lock
        self.holding = False
        self.callers = 0
        self.changed = asyncio.Event()
        self.task: asyncio.Task[Any]

    async def wait(self, within: float) -> None:
        """Until one of the names is heard of, at most `within` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self.changed.wait()
        self.changed.clear()


class Flights:
    """At most one joinable flight for a key."""

    def __init__(self) -> None:
        self._joinable: dict[str, Flight] = {}
        self._by_name: dict[str, set[Flight]] = {}
        self._all: set[Flight] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._joinable

    def start(self, key: str, names: list[str], lock: str, work: Callable[[Flight], Coroutine[Any, Any, Any]]) -> None:
        """Have `work(flight)` run under `key`, which has no joinable flight."""
        flight = Flight(key, names, lock)
        self._joinable[key] = flight
        self._all.add(flight)
        for name in (*names, lock):
            self._by_name.setdefault(name, set()).add(flight)
        flight.task = asyncio.create_task(work(flight))
        flight.task.add_done_callback(lambda task: self._end(flight))

    async def join(self, key: str) -> Any:
        """What the flight returns or raises. One who is cancelled leaves it to the others; the last one ends it."""
        flight = self._joinable[key]
        flight.callers += 1
        try:
            await asyncio.wait([flight.task])  # which leaves it alone when we are cancelled
            return flight.task.result()
        finally:
            flight.callers -= 1
            if not flight.callers and not flight.task.done():
                self._leave(flight)
                flight.task.cancel()

    def heard(self, names: Iterable[str] | None) -> None:
        """These keys have changed, or all may have: wake who waits for them, and let nobody join what is older."""
        if names is None:
            for flight in self._all:
                flight.changed.set()
                self._leave(flight)
            return
        for name in names:
            for flight in self._by_name.get(name, ()):
                flight.changed.set()
                if flight.holding or name != flight.lock:
                    self._leave(flight)

    async def aclose(self) -> None:
        for flight in self._all:
            flight.task.cancel()
        await asyncio.gather(*(flight.task for flight in self._all), return_exceptions=True)

    def _leave(self, flight: Flight) -> None:
        if self._joinable.get(flight.key) is flight:
            del self._joinable[flight.key]

    def _end(self, flight: Flight) -> None:
        if not flight.task.cancelled():
            flight.task.exception()  # seen, also when everybody has left
        self._leave(flight)
        self._all.discard(flight)
        for name in (*flight.names, flight.lock):
            self._by_name[name].discard(flight)
            if not self._by_name[name]:
                del self._by_name[name]
