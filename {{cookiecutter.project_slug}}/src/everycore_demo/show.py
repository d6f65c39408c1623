"""`demo`: sends requests to a server, and prints the count in each worker's memory beside the count in Redis."""

import contextlib
import http.client
import json
import sys
import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import click

from everycore.cli import development, run_redis, run_server
from everycore_demo.chaos import Chaos

CONCURRENCY = 8  # requests at the same time
STEPS = 12  # requests of the visitor whose session is followed
TIMEOUT = 30.0  # seconds for one response
PORT = 8000  # if it is in use, a free port is chosen

Hit = dict[str, Any]  # the JSON of one response of /demo/hit


class NoResponseError(Exception):
    """The server did not respond as the demo does."""


@dataclass
class Tally:
    """The responses of a run.

    Attributes:
        sent: Number of requests.
        failed: Number of requests without a response. Redis may have counted them.
        hits: The responses.
    """

    sent: int = 0
    failed: int = 0
    hits: list[Hit] = field(default_factory=list)

    @property
    def counted(self) -> int:
        """The increase of the count in Redis, from the first to the last response."""
        totals = [hit["redis"]["hits"] for hit in self.hits]
        return max(totals) - min(totals) + 1 if totals else 0

    @property
    def exact(self) -> bool:
        """Whether each response has a count of its own, and only failed requests left a gap."""
        distinct = len({hit["redis"]["hits"] for hit in self.hits})
        return distinct == len(self.hits) > 0 and distinct <= self.counted <= self.sent


def show_on_own_server(app: str, requests: int, workers: int, chaos: bool) -> bool:
    """Start a server with a private Redis, and run the demo on it. In a terminal, keep it running until Ctrl-C.

    Args:
        app: The app, as "module:attribute".
        requests: Number of requests.
        workers: Number of workers.
        chaos: Whether to kill and reload workers during the requests.

    Returns:
        Whether the shared counts were exact.

    Raises:
        RedisServerError: There is no Redis server on this machine, or it did not start.
        NoResponseError: The app does not respond as the demo does.
    """
    with contextlib.ExitStack() as stack:
        environ = {**development(stack.enter_context(run_redis())), "LINGER": "0", "LOG_LEVEL": "warning"}
        try:
            running = stack.enter_context(run_server(app, environ, "--workers", str(workers), port=PORT))
        except OSError:
            running = stack.enter_context(run_server(app, environ, "--workers", str(workers)))
        exact = show(running.url, requests, Chaos(running) if chaos else contextlib.nullcontext())
        if exact and sys.stdout.isatty():
            click.echo(f"\nOpen {running.url} to see it in a browser. Ctrl-C stops it.")
            with contextlib.suppress(KeyboardInterrupt):
                running.process.wait()
        return exact


def show(url: str, requests: int, meanwhile: contextlib.AbstractContextManager[object] | None = None) -> bool:
    """Send requests to a running server and print the result.

    Args:
        url: The URL of the server, such as http://127.0.0.1:8000.
        requests: Number of requests.
        meanwhile: Context manager that is entered while the requests are sent.

    Returns:
        Whether the shared counts were exact.

    Raises:
        NoResponseError: The server does not respond as the demo does.
    """
    try:
        get(url, "/readyz")
        with (
            meanwhile or contextlib.nullcontext(),
            click.progressbar(length=requests, label="Requests", file=sys.stderr) as bar,
        ):
            tally = fire(url, requests, lambda: bar.update(1))
        steps = follow(url)
    except (OSError, http.client.HTTPException) as error:
        raise NoResponseError(f"{url} does not respond as the demo does: {error}") from None
    text, exact = report(tally, steps)
    click.echo(text)
    return exact


def fire(url: str, requests: int, progress: Callable[[], None]) -> Tally:
    """Send requests to /demo/hit, CONCURRENCY at the same time, each over a new connection.

    Args:
        url: The URL of the server.
        requests: Number of requests.
        progress: Called after each request.
    """
    tally = Tally()
    lock = threading.Lock()

    def send(_: int) -> None:
        try:
            hit = get(url, "/demo/hit")[0]
        except (OSError, http.client.HTTPException):
            hit = None
        with lock:
            tally.sent += 1
            if hit is None:
                tally.failed += 1
            else:
                tally.hits.append(hit)
            progress()

    with ThreadPoolExecutor(CONCURRENCY) as threads:
        list(threads.map(send, range(requests)))
    return tally


def follow(url: str) -> list[Hit]:
    """Return the responses to the requests of one visitor, one after the other. Any worker may handle each of them."""
    steps, cookie = [], ""
    for _ in range(STEPS):
        hit, cookie = get(url, "/demo/hit", cookie)
        steps.append(hit)
    return steps


def get(url: str, path: str, cookie: str = "") -> tuple[Hit, str]:
    """Send a GET request over a new connection, and return the decoded JSON and the session cookie.

    Raises:
        OSError: The server sent no complete response.
        http.client.HTTPException: The response has another status than 200, or it is not JSON.
    """
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=TIMEOUT)
    try:
        connection.request("GET", path, headers={"Connection": "close", **({"Cookie": cookie} if cookie else {})})
        response = connection.getresponse()
        body = response.read()
        if response.status != http.HTTPStatus.OK:
            raise http.client.HTTPException(f"{path} responded with {response.status} {response.reason}")
        return json.loads(body), (response.getheader("Set-Cookie") or cookie).partition(";")[0]
    except ValueError:
        raise http.client.HTTPException(f"the response of {path} is not JSON") from None
    finally:
        connection.close()


def report(tally: Tally, steps: list[Hit]) -> tuple[str, bool]:
    """Return the text to print, and whether every shared count was exact.

    A row of the table has the count in one worker's memory, and the count in Redis that all workers share.

    Args:
        tally: The responses of the run.
        steps: The responses to the visitor whose session was followed.
    """
    total = max((hit["redis"]["hits"] for hit in tally.hits), default=0)
    workers: dict[tuple[str, int], list[Hit]] = defaultdict(list)
    for hit in tally.hits:
        # The host is a part of the key, because workers in different containers may have the same pid.
        workers[hit["worker"]["host"], hit["worker"]["pid"]].append(hit)
    lines = [f"{'worker':<8}{'pid':>9}{'count in its memory':>23}{'count in Redis':>18}"]
    for (_, pid), hits in sorted(workers.items(), key=lambda item: (item[1][0]["worker"]["slot"], item[0])):
        memory = max(hit["memory"]["hits"] for hit in hits)
        lines.append(f"{hits[0]['worker']['slot']:<8}{pid:>9}{memory:>23}{total:>18}")
    if tally.failed:
        lines.append(f"\n{tally.failed} of {tally.sent} requests got no response, because their worker was killed.")
    result = "NOT EXACT" if not tally.exact else "no response is missing" if tally.failed else "exact"
    lines.append(f"\nRedis counted {tally.counted} for {len(tally.hits)} responses: {result}")
    followed = [hit["session"]["hits"] for hit in steps] == list(range(1, STEPS + 1))
    lines.append(f"\nOne visitor's session, followed from worker to worker: {'exact' if followed else 'NOT EXACT'}")
    lines.append(" → ".join(f"w{hit['worker']['slot']}:{hit['session']['hits']}" for hit in steps))
    return "\n".join(lines), tally.exact and followed
