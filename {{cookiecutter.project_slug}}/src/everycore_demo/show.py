"""`demo`: fires requests at a cluster and shows how many each worker would say there were, beside what Redis says."""

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

from everycore.cli.dev_redis import run_redis
from everycore.cli.local_server import cluster, development
from everycore_demo.chaos import Chaos

AT_ONCE = 8
STEPS = 12  # of the visitor whose session is followed
TIMEOUT = 30.0  # seconds for one answer
PORT = 8000  # or a free one, if it is taken

Answer = dict[str, Any]


class NoAnswerError(Exception):
    """A cluster that does not answer as the demo."""


@dataclass
class Tally:
    """What came back. `broken` requests got no answer: whether they were counted, only Redis knows."""

    sent: int = 0
    broken: int = 0
    answers: list[Answer] = field(default_factory=list)

    @property
    def counted(self) -> int:
        """How far Redis' figure moved, as the answers show it."""
        totals = [answer["redis"]["hits"] for answer in self.answers]
        return max(totals) - min(totals) + 1 if totals else 0

    @property
    def exact(self) -> bool:
        """Each answer carries a figure of its own, and together they leave no gap but for the broken ones."""
        different = len({answer["redis"]["hits"] for answer in self.answers})
        return different == len(self.answers) > 0 and different <= self.counted <= self.sent


def own_cluster(requests: int, workers: int, chaos: bool) -> bool:
    """Run the demo on a cluster made for it; in a terminal, serve on until Ctrl-C. True if all was exact.

    Raises RedisServerError or NoAnswerError.
    """
    with contextlib.ExitStack() as stack:
        environ = {**development(stack.enter_context(run_redis())), "LINGER": "0", "LOG_LEVEL": "warning"}
        try:
            running = stack.enter_context(cluster(environ, "--workers", str(workers), port=PORT))
        except OSError:
            running = stack.enter_context(cluster(environ, "--workers", str(workers)))
        exact = show(running.url, requests, Chaos(running.pid, running.run_dir) if chaos else contextlib.nullcontext())
        if exact and sys.stdout.isatty():
            click.echo(f"\nOpen {running.url} to see it in a browser. Ctrl-C stops it.")
            with contextlib.suppress(KeyboardInterrupt):
                running.process.wait()
        return exact


def show(url: str, requests: int, meanwhile: contextlib.AbstractContextManager[object] | None = None) -> bool:
    """Fire `requests` at the cluster at `url`, print the table, and return whether all was exact."""
    try:
        get(url, "/readyz")
        with (
            meanwhile or contextlib.nullcontext(),
            click.progressbar(length=requests, label="Requests", file=sys.stderr) as bar,
        ):
            tally = fire(url, requests, lambda: bar.update(1))
        steps = follow(url)
    except (OSError, http.client.HTTPException) as error:
        raise NoAnswerError(f"{url} does not answer as the demo: {error}") from None
    text, exact = report(tally, steps)
    click.echo(text)
    return exact


def fire(url: str, requests: int, progress: Callable[[], None]) -> Tally:
    """Send `requests` hits, AT_ONCE at a time, each over a connection of its own."""
    tally = Tally()
    lock = threading.Lock()

    def one(_: int) -> None:
        try:
            answer = get(url, "/demo/hit")[0]
        except (OSError, http.client.HTTPException):
            answer = None
        with lock:
            tally.sent += 1
            if answer is None:
                tally.broken += 1
            else:
                tally.answers.append(answer)
            progress()

    with ThreadPoolExecutor(AT_ONCE) as threads:
        list(threads.map(one, range(requests)))
    return tally


def follow(url: str) -> list[Answer]:
    """One visitor, one request after the other, whoever answers."""
    steps, cookie = [], ""
    for _ in range(STEPS):
        answer, cookie = get(url, "/demo/hit", cookie)
        steps.append(answer)
    return steps


def get(url: str, path: str, cookie: str = "") -> tuple[Answer, str]:
    """GET over a fresh connection; return the JSON and the session cookie. Raises OSError or HTTPException."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=TIMEOUT)
    try:
        connection.request("GET", path, headers={"Connection": "close", **({"Cookie": cookie} if cookie else {})})
        response = connection.getresponse()
        body = response.read()
        if response.status != http.HTTPStatus.OK:
            raise http.client.HTTPException(f"{path} answered {response.status} {response.reason}")
        return json.loads(body), (response.getheader("Set-Cookie") or cookie).partition(";")[0]
    except ValueError:
        raise http.client.HTTPException(f"{path} answered no JSON") from None
    finally:
        connection.close()


def report(tally: Tally, steps: list[Answer]) -> tuple[str, bool]:
    """The table to print, and whether every shared figure was exact.

    Each row has what a visitor of that worker would be told: the worker's own count, and the one that all share.
    """
    truth = max((answer["redis"]["hits"] for answer in tally.answers), default=0)
    workers: dict[tuple[str, int], list[Answer]] = defaultdict(list)
    for answer in tally.answers:
        # In containers, several hosts have the same pids.
        workers[answer["worker"]["host"], answer["worker"]["pid"]].append(answer)
    lines = [f"{'worker':<8}{'pid':>9}{'visits, by its memory':>25}{'visits, by Redis':>20}"]
    for (_, pid), answers in sorted(workers.items(), key=lambda item: (item[1][0]["worker"]["slot"], item[0])):
        memory = max(answer["memory"]["hits"] for answer in answers)
        lines.append(f"{answers[0]['worker']['slot']:<8}{pid:>9}{memory:>25}{truth:>20}")
    if tally.broken:
        lines.append(f"\n{tally.broken} of {tally.sent} requests got no answer: their worker was killed.")
    verdict = "NOT EXACT" if not tally.exact else "no answered one is missing" if tally.broken else "exact"
    lines.append(f"\nRedis counted {tally.counted} for {len(tally.answers)} answers: {verdict}")
    followed = [answer["session"]["hits"] for answer in steps] == list(range(1, STEPS + 1))
    lines.append(f"\nOne visitor's session, followed from worker to worker: {'exact' if followed else 'NOT EXACT'}")
    lines.append(" → ".join(f"w{answer['worker']['slot']}:{answer['session']['hits']}" for answer in steps))
    return "\n".join(lines), tally.exact and followed
