"""Functions of the app that run at events of the server, so that nobody edits the engine.

    from everycore.server import hooks

    @hooks.worker_ended
    def report(worker: hooks.Worker, cause: str) -> None: ...

The app registers them at its import or in its factory. The primary never imports the app, so it runs none of them:

- `before_fork` runs in the template process, after the import, as a part of it.
- `worker_ready` runs in a thread of the worker.
- `worker_ended` and `reload_ended` run in a process of their own, which the template process forks. It ends when they
  have returned, or after TIMEOUT.

An error of a function is logged, and the next function runs.
"""

import faulthandler
import inspect
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

TIMEOUT = 10.0  # seconds for the process that runs `worker_ended` and `reload_ended`

Function = TypeVar("Function", bound=Callable[..., object])

logger = logging.getLogger(__name__)
_registered: defaultdict[str, list[Callable[..., object]]] = defaultdict(list)


@dataclass(frozen=True)
class Worker:
    """A worker, as hooks get it.

    Attributes:
        slot: Number of its slot, from 0. Its replacement has the same.
        generation: Generation of its code, from 1.
        pid: Its process id.
    """

    slot: int
    generation: int
    pid: int


@dataclass(frozen=True)
class Reload:
    """The outcome of a reload, as hooks get it.

    Attributes:
        outcome: "done" or "refused".
        generation: The generation that runs now.
        revision: The revision of its code, or empty.
        reason: Why the reload was refused, or empty.
    """

    outcome: str
    generation: int
    revision: str
    reason: str


def before_fork(function: Function) -> Function:
    """Have `function()` called after the import of the app, before workers are forked from that process.

    It can close what workers must not share, or warm up what they shall share. If each worker imports the app itself,
    nothing is forked after the import, and the call has no effect on workers.
    """
    return _register("before_fork", function)


def worker_ready(function: Function) -> Function:
    """Have `function(worker)` called in each worker when it has begun to accept connections."""
    return _register("worker_ready", function)


def worker_ended(function: Function) -> Function:
    """Have `function(worker, cause)` called after a worker has ended, but not at the stop of the whole server.

    `cause` is one of those of the metric `cluster_worker_exits_total`, such as "signal", "memory" or "reloaded".
    """
    return _register("worker_ended", function)


def reload_ended(function: Function) -> Function:
    """Have `function(reload)` called when a reload is done, in the new code, or refused, in the old code."""
    return _register("reload_ended", function)


def _register(event: str, function: Function) -> Function:
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"{function.__qualname__} is async, but {event} calls plain functions. Use asyncio.run in one.")
    _registered[event].append(function)
    return function


def registered() -> list[str]:
    """Return the events that have a function."""
    return list(_registered)


def forget() -> None:
    """Forget all functions, because the app is imported again."""
    _registered.clear()


def run(event: str, *arguments: object) -> None:
    """Call the functions of an event, and log their errors."""
    for function in _registered.get(event, ()):
        try:
            function(*arguments)
        except (Exception, SystemExit):
            logger.exception("hook %s failed: %s.%s", event, function.__module__, function.__qualname__)


def run_in_thread(event: str, *arguments: object) -> None:
    """Call the functions of an event in a thread that the process does not wait for."""
    if event in _registered:
        with suppress(RuntimeError):  # no other thread can be started
            threading.Thread(target=run, args=(event, *arguments), name="hooks", daemon=True).start()


def run_in_time(events: Iterable[Sequence[Any]], load_timeout: float, load: Callable[[], object]) -> None:
    """In a process of its own: call the functions of several events. Print its stacks and exit if that takes too long.

    Args:
        events: The name of each, with the values of its arguments.
        load_timeout: Seconds for `load`, more than TIMEOUT.
        load: Imports the app, unless that was done before the fork.
    """
    with suppress(RuntimeError, AttributeError, OSError, ValueError):  # there is no stderr
        faulthandler.dump_traceback_later(TIMEOUT + load_timeout, exit=True)
    load()
    for name, *values in events:
        if name == "reload_ended":
            run(name, Reload(*values))
        else:
            slot, generation, pid, cause = values
            run(name, Worker(slot, generation, pid), cause)
