"""Ends a worker as Python ends a process: tasks, executors, threads and `atexit`, but within a time limit.

A worker is a fork, so it must end with `os._exit`, which runs none of these. This module uses four undocumented names
of the standard library, as `multiprocessing` does for its own forks: `threading._threading_atexits`,
`atexit._run_exitfuncs`, `weakref.finalize._registry` and `multiprocessing.process._children`. They exist in Python 3.11
to 3.14, and a test fails if one is missing.
"""

import asyncio
import atexit
import gc
import inspect
import logging
import os
import sys
import threading
import traceback
import weakref
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any

import uvloop

from everycore.server.logging import counted

CANCEL_GRACE = 1.0  # seconds for the cleanup of cancelled requests and tasks, also after the deadline
SELF_END_GRACE = 0.5  # seconds for tasks that end without being cancelled, such as one that looks twice a second
THREAD_GRACE = 0.5  # seconds for threads, also after the deadline
EXIT_GRACE = 1.0  # seconds for the functions of `atexit`, also after the deadline
KILL_GRACE = 0.3  # seconds for code that waits for a killed child process
LOG_GRACE = 0.3  # seconds for the last line, because the exit function that hangs may hold a lock of `logging`
MAX_NAMES = 3  # of tasks, threads or processes in one line

logger = logging.getLogger(__name__)


class Ending:
    """Runs the event loop of a worker and ends its process, except for `os._exit`.

    Attributes:
        deadline: When everything that still runs is cut, in monotonic seconds. It is 0 until a drain begins. A worker
            that fails before a drain has only the `_GRACE` times.
        reported: Tasks that the worker has reported already, so that they are not counted with the app's.
    """

    def __init__(self) -> None:
        self.deadline = 0.0
        self.reported: set[asyncio.Task[Any]] = set()
        self._code: int | None = None
        self._cut: dict[str, list[str]] = {}  # names by kind
        self._pending: set[asyncio.Task[Any]] = set()  # kept, so that asyncio does not report their destruction
        self._is_reported = threading.Lock()

    def run(self, main: Coroutine[Any, Any, None]) -> int:
        """Run `main` in an event loop, and then everything that a Python process runs at its end.

        Args:
            main: Serves and drains. It is cancelled if the app raises SystemExit in another task.

        Returns:
            The exit code.
        """
        loop = uvloop.new_event_loop()
        asyncio.set_event_loop(loop)
        task = loop.create_task(main)
        while not task.done():
            try:
                loop.run_until_complete(task)
                self._code = self._code or 0
            except SystemExit as leaving:
                self._code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
            except BaseException as error:
                if self._code is None or not isinstance(error, asyncio.CancelledError):
                    logger.exception("the worker failed")
                    self._code = 1
            task.cancel()
        with suppress(SystemExit):  # from the cleanup of a task
            loop.run_until_complete(self._finish_loop())
        loop.close()
        self._run_exit_functions()
        return self._code or 0

    def _left(self, grace: float) -> float:
        """Return the seconds until the deadline, at least `grace`."""
        return max(grace, self.deadline - monotonic())

    async def _finish_loop(self) -> None:
        await self._cancel_tasks()
        closing = asyncio.create_task(asyncio.get_running_loop().shutdown_asyncgens(), name="async generators")
        self._pending |= (await asyncio.wait({closing}, timeout=self._left(CANCEL_GRACE)))[1]
        self._cut["tasks"] = [_task_name(task) for task in self._pending]
        for task in list(self._pending)[:MAX_NAMES]:
            logger.warning("task %s ignored its cancellation; it waits here:\n%s", _task_name(task), _stack(task))
        # The loop runs while threads are joined, because a thread may wait for a result from it.
        await self._join_threads()

    async def _cancel_tasks(self) -> None:
        """Cancel the tasks that are left, and wait for their cleanup until the deadline."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        if tasks - self.reported:
            await asyncio.wait(tasks, timeout=min(SELF_END_GRACE, self._left(0)))
        tasks = {task for task in tasks if not task.done()}
        for task in tasks:
            task.cancel(msg="the worker ends")
        if left := tasks - self.reported:
            level = logging.WARNING if self.deadline else logging.DEBUG  # a failed start has its own lines
            what, names = counted(len(left), "task"), _listed(map(_task_name, left))
            logger.log(level, "%s of the app cancelled at the end of the worker: %s", what, names)
        if not tasks:
            return
        done, self._pending = await asyncio.wait(tasks, timeout=self._left(CANCEL_GRACE))
        for task in done:
            if not task.cancelled() and (error := task.exception()):
                logger.error("task %s failed when it was cancelled", _task_name(task), exc_info=error)

    async def _join_threads(self) -> None:
        """Shut down executors and join threads, except daemon threads."""
        loop, joined = asyncio.get_running_loop(), asyncio.Event()

        def join() -> None:
            _join_executors_and_threads()
            with suppress(RuntimeError):  # it was too late, and the loop is closed
                loop.call_soon_threadsafe(joined.set)

        with suppress(RuntimeError):  # no other thread can be started
            threading.Thread(target=join, name="join", daemon=True).start()
            if not await _is_set(joined, self._left(THREAD_GRACE)):
                # An executor of processes ends when its processes do.
                self._kill_children()
                await _is_set(joined, KILL_GRACE)
        self._cut["threads"] = [thread.name for thread in _threads()]

    def _run_exit_functions(self) -> None:
        """Run the functions of `atexit` in the main thread, where some libraries expect them."""
        ended = threading.Event()
        with suppress(RuntimeError):  # no other thread can be started
            threading.Thread(target=self._exit_at_deadline, args=(ended,), daemon=True).start()
        with _failures_logged():
            atexit._run_exitfuncs()
        ended.set()
        self._report()

    def _exit_at_deadline(self, ended: threading.Event) -> None:
        if ended.wait(self._left(EXIT_GRACE)):
            return
        self._kill_children()  # `multiprocessing` joins them in its exit function
        if ended.wait(KILL_GRACE):
            return
        self._cut["exit functions"] = [_running_exit_function()]
        reporter = threading.Thread(target=self._report, daemon=True)
        reporter.start()
        reporter.join(LOG_GRACE)
        os._exit((self._code or 0) & 0xFF)

    def _kill_children(self) -> None:
        """Kill the processes of `multiprocessing`. Otherwise those that run a long job would outlive the worker."""
        children = _children()
        self._cut.setdefault("processes", []).extend(child.name for child in children)
        for child in children:
            child.kill()

    def _report(self) -> None:
        """Log once what was cut, if anything was."""
        cut = [f"{kind}={len(names)} ({_listed(names)})" for kind, names in self._cut.items() if names]
        if cut and self._is_reported.acquire(blocking=False):
            logger.warning("cut at the end of the worker: %s", ", ".join(cut))


def _forget_inherited() -> None:
    """In a forked process: forget the finalizers and the child processes of its parent, which all workers would share.

    A finalizer would remove a temporary directory that other workers use, and the first worker to end would terminate
    the processes of `multiprocessing`. Functions of `atexit` remain, because each worker has its own traces or
    statistics to write.
    """
    registry: dict[weakref.finalize[..., Any], Any] = getattr(weakref.finalize, "_registry", {})
    for finalizer in list(registry):
        finalizer.atexit = False
    if process := sys.modules.get("multiprocessing.process"):
        getattr(process, "_children", set()).clear()


os.register_at_fork(after_in_child=_forget_inherited)


def _children() -> list[Any]:
    """Return the live children of this process that `multiprocessing` has started."""
    process = sys.modules.get("multiprocessing.process")
    return process.active_children() if process else []


def _threads() -> list[threading.Thread]:
    """Return the threads that Python joins at the end of a process."""
    return [each for each in threading.enumerate() if not each.daemon and each is not threading.main_thread()]


def _join_executors_and_threads() -> None:
    # `concurrent.futures` registers functions here that let its threads finish their work and end.
    for function in reversed(getattr(threading, "_threading_atexits", ())):
        try:
            function()
        except Exception:
            logger.exception("an executor failed at the end of the worker")
    while threads := _threads():
        threads[0].join()


async def _is_set(event: asyncio.Event, seconds: float) -> bool:
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()


@contextmanager
def _failures_logged() -> Iterator[None]:
    """Log what exit functions and finalizers raise, unless the app has set a hook of its own."""

    def log(source: object, error: BaseException | None) -> None:
        logger.error("exit function failed: %r", source, exc_info=error)

    unraisable, uncaught = sys.unraisablehook, sys.excepthook
    if unraisable is sys.__unraisablehook__:
        sys.unraisablehook = lambda failure: log(failure.object, failure.exc_value)
    if uncaught is sys.__excepthook__:
        sys.excepthook = lambda _, error, __: log(weakref.finalize, error)
    try:
        yield
    finally:
        sys.unraisablehook, sys.excepthook = unraisable, uncaught


def _running_exit_function() -> str:
    """Return the name of the exit function that the main thread runs."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    name = "of a C extension"
    while frame is not None and frame.f_code is not Ending._run_exit_functions.__code__:
        name = f"{frame.f_globals.get('__name__')}.{frame.f_code.co_qualname}"
        frame = frame.f_back
    return name


def _task_name(task: asyncio.Task[Any]) -> str:
    """Return the name that the app gave the task, or that of its function."""
    name = task.get_name()
    return getattr(task.get_coro(), "__qualname__", name) if name.startswith("Task-") else name


def _stack(task: asyncio.Task[Any]) -> str:
    """Return where a task waits, the outermost call first. `Task.print_stack` shows only that call."""
    frames, awaitable = [], task.get_coro()
    while awaitable is not None:
        names = ("cr_frame", "gi_frame", "ag_frame")
        frames += [(frame, frame.f_lineno) for name in names if (frame := getattr(awaitable, name, None))]
        awaitable = _awaited_by(awaitable)
    return "".join(traceback.StackSummary.extract(iter(frames)).format()).rstrip()


def _awaited_by(awaitable: Any) -> Any:
    for name in ("cr_await", "gi_yieldfrom", "ag_await"):
        if hasattr(awaitable, name):
            return getattr(awaitable, name)
    # Only the garbage collector knows the generator that a step belongs to, such as that of a Starlette lifespan.
    return next((each for each in gc.get_referents(awaitable) if inspect.isasyncgen(each)), None)


def _listed(names: Iterable[str]) -> str:
    shown = sorted(names)
    more = len(shown) - MAX_NAMES
    return ", ".join(shown[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
