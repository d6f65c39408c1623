"""The load generator: keeps connections busy, and counts every kind of failure apart."""

import asyncio
import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from .http1 import Answer, BrokenError, Connection
from .stats import percentile

TIMEOUT = 10.0  # seconds for one request
PAUSE_AFTER_REFUSAL = 0.01  # seconds; or a stopped server is hammered with nothing but connects

OK, REFUSED, TIMED_OUT = "ok", "refused", "timeout"
RESET_ON_REUSED, RESET_ON_FRESH = "reset on reused", "reset on fresh"
CLOSED_IDLE = "closed idle"  # no failure: seen before anything was sent


@dataclass
class Result:
    """What was answered. A sample is (when it ended on the monotonic clock, seconds it took, outcome).

    Outcomes: "ok", "http 503" and the like, "reset on reused", "reset on fresh", "refused", "timeout".
    workers, connections: requests, and fresh connections, for each pid that was a body (/pid, /slow, /block).
    """

    samples: list[tuple[float, float, str]] = field(default_factory=list)
    workers: Counter[str] = field(default_factory=Counter)
    connections: Counter[str] = field(default_factory=Counter)
    closed_idle: int = 0
    began: float = field(default_factory=time.monotonic)
    seconds: float = 0.0

    @property
    def outcomes(self) -> Counter[str]:
        return Counter(outcome for _, _, outcome in self.samples)

    @property
    def ok(self) -> int:
        return self.outcomes[OK]

    def failures(self, *forgiven: str) -> Counter[str]:
        """Everything that was not ok, except the `forgiven` kinds."""
        return Counter({kind: count for kind, count in self.outcomes.items() if kind not in (OK, *forgiven)})

    def latencies(self, outcome: str = OK) -> list[float]:
        """Seconds."""
        return [took for _, took, kind in self.samples if kind == outcome]

    def p50(self) -> float:
        return percentile(self.latencies(), 50)

    def p99(self) -> float:
        return percentile(self.latencies(), 99)


async def run(
    url: str,
    path: str,
    connections: int,
    *,
    seconds: float | None = None,
    requests: int | None = None,
    keep_alive: bool = True,
    cookies: Sequence[str] | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = TIMEOUT,
    result: Result | None = None,
    stop: asyncio.Event | None = None,
) -> Result:
    """Send GET `path` on `connections` connections, for `seconds` or until `requests` are sent, or `stop` is set.

    cookies: each request takes the next. result: filled while it runs.
    """
    assert (seconds is None) != (requests is None), "either seconds or requests"
    load = _Load(url, path, result or Result(), stop or asyncio.Event(), keep_alive, cookies, headers, timeout)
    load.left = itertools.repeat(None) if requests is None else iter(range(requests))
    load.until = load.result.began + seconds if seconds is not None else float("inf")
    await asyncio.gather(*(load.keep_busy() for _ in range(connections)))
    load.result.seconds = time.monotonic() - load.result.began
    return load.result


class _Load:
    def __init__(
        self,
        url: str,
        path: str,
        result: Result,
        stop: asyncio.Event,
        keep_alive: bool,
        cookies: Sequence[str] | None,
        headers: Mapping[str, str] | None,
        timeout: float,
    ) -> None:
        self.url, self.path, self.result, self.stop = url, path, result, stop
        self.keep_alive, self.timeout = keep_alive, timeout
        self.cookies = itertools.cycle(cookies) if cookies else itertools.repeat(None)
        self.headers = dict(headers or {}) | ({} if keep_alive else {"Connection": "close"})
        self.left: Iterator[object]
        self.until = 0.0

    async def keep_busy(self) -> None:
        connection: Connection | None = None
        try:
            while self._goes_on():
                if connection is not None and await connection.closed_while_idle():
                    self.result.closed_idle += 1
                    connection.close()
                    connection = None
                connection = await self._one_request(connection)
        finally:
            if connection is not None:
                connection.close()

    def _goes_on(self) -> bool:
        if self.stop.is_set() or time.monotonic() >= self.until:
            return False
        return next(self.left, self) is not self

    async def _one_request(self, connection: Connection | None) -> Connection | None:
        """Send one, on a new connection if there is none; return the connection if it can be used again."""
        began, reused, kept = time.monotonic(), connection is not None, None
        try:
            async with asyncio.timeout(self.timeout):
                if connection is None:
                    connection = await Connection.open(self.url)
                answer = await connection.get(self.path, next(self.cookies), self.headers)
            outcome = self._judge(answer, reused)
            if self.keep_alive and not connection.closing:
                kept = connection
        except TimeoutError:
            outcome = TIMED_OUT
        except ConnectionRefusedError:
            outcome = REFUSED
        except (BrokenError, OSError):
            outcome = RESET_ON_REUSED if reused else RESET_ON_FRESH
        self.result.samples.append((time.monotonic(), time.monotonic() - began, outcome))
        if connection is not None and kept is None:
            connection.close()
        if outcome == REFUSED:
            await asyncio.sleep(PAUSE_AFTER_REFUSAL)
        return kept

    def _judge(self, answer: Answer, reused: bool) -> str:
        if answer.status != 200:
            return f"http {answer.status}"
        if answer.body.isdigit():
            worker = answer.body.decode()
            self.result.workers[worker] += 1
            if not reused:
                self.result.connections[worker] += 1
        return OK


class Background:
    """`run` in a thread of its own, so that signals can be sent meanwhile: `with Background(...) as load:`.

    Takes what `run` takes. `result` may be read while it runs; `stop()` lets the requests in flight finish.
    """

    def __init__(self, url: str, path: str, connections: int, seconds: float, **options: object) -> None:
        self.result = Result()
        self._arguments = (url, path, connections)
        self._options = {**options, "seconds": seconds, "result": self.result}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._error: BaseException | None = None
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._main, daemon=True)

    def start(self) -> "Background":
        """Returns when the first request has been answered, one way or another."""
        self._thread.start()
        self._begun.wait()
        while not self.result.samples and self._thread.is_alive():
            time.sleep(0.001)
        return self

    def stop(self) -> Result:
        """End it, if it has not ended by itself, and return what it saw."""
        if self._loop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self.result

    def wait(self) -> Result:
        """Let it run for all its seconds."""
        self._thread.join()
        return self.stop()

    def __enter__(self) -> "Background":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _main(self) -> None:
        try:
            asyncio.run(self._run())
        except BaseException as error:  # raised again where stop() is called
            self._error = error
        finally:
            self._begun.set()

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._begun.set()
        await run(*self._arguments, **self._options, stop=self._stop)  # type: ignore[arg-type]
