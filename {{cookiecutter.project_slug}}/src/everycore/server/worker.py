"""One worker: a uvicorn.Server that accepts its fair share, writes heartbeats and drains.

A template process forks it (template_forks.py). It writes only its own row of the scoreboard. It is connected to
its primary by two pipes, and to no other worker.
"""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, monotonic_ns, thread_time_ns
from typing import Any, NoReturn

import uvicorn
from uvicorn.lifespan.on import LifespanOn

from everycore.environ import SettingsError
from everycore.server import app_metrics, hooks, parent_death, request_stats, scoreboard
from everycore.server.acceptor import Acceptor, read_accept_wait
from everycore.server.app_forks import AppForks
from everycore.server.children import State
from everycore.server.connections import (
    CountedConnections,
    ShutDown,
    WebSocketSpread,
    is_idle,
    is_in_handshake,
    is_websocket,
)
from everycore.server.ending import CANCEL_GRACE, Ending
from everycore.server.http import HttpConfig
from everycore.server.import_errors import WORKER_BOOT_ERROR, LoadError
from everycore.server.logging import flush_streams, keep_loggers, set_process, set_uvicorn_level
from everycore.server.policy import Policy, Recycling
from everycore.server.process import ResidentMemory, Title, enable_stack_dumps, max_connections
from everycore.server.request_timeouts import RequestTimeouts
from everycore.server.scoreboard import Scoreboard
from everycore.server.signals import IGNORED_SIGNALS, do_nothing, log_ignored, reset_signals
from everycore.server.view import ClusterView

TICK, TICKS_A_SECOND = 0.1, 10  # seconds; uvicorn's own interval
DRAIN_TICK, DRAIN_TICKS_A_SECOND = 0.02, 50  # shorter, so that a drain ends soon after its last connection
HANDSHAKE_TIMEOUT = 10.0  # seconds for TLS
CLOSE_TIMEOUT = (
    3600.0  # seconds; request_timeouts.py limits the wait. uvloop's own 30 s would cut off a client that reads slowly
)
MIN_LIFESPAN_END = 1.0  # seconds, also after the graceful timeout

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerContext:
    """What a worker is given. The last four differ for each worker, and come with the order to fork it."""

    primary: int  # pid
    inherited: bool  # whether the primary is, or becomes, the parent of the worker
    board: Scoreboard
    listeners: Sequence[socket.socket]
    policy: Policy
    title: Title
    parent_pipe: int  # read end, which reports the end of the file when the primary exits
    metrics: Path  # folder of the files of the app's own metrics
    wakeup_pipe: int  # write end, where a byte makes the primary read the scoreboard
    slot: int
    generation: int
    row: int
    again: bool  # whether the last worker of this slot died before it was ready


def live(load: Callable[[], HttpConfig], context: WorkerContext) -> NoReturn:
    """In a forked child with blocked signals: run the worker and exit. The caller's code never continues.

    Args:
        load: Returns what to serve. It imports the app, unless that was done before the fork.
        context: What the worker is given.
    """
    code = 1
    try:
        reset_signals()
        code = run(load, context)
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except (LoadError, SettingsError) as error:
        logger.error("%s", error)
        code = WORKER_BOOT_ERROR
    except BaseException:
        logger.exception("the worker failed")
    finally:
        os._exit(code & 0xFF)  # as sys.exit does; an OverflowError here would make the child continue its parent's code


def run(load: Callable[[], HttpConfig], context: WorkerContext) -> int:
    """In the forked child, with signals unblocked: serve until SIGTERM.

    Args:
        load: Returns what to serve.
        context: What the worker is given.

    Returns:
        The exit code.
    """
    set_process("worker", context.slot, context.generation)
    context.title.set(f"worker {context.slot}", context.generation)
    os.environ["WORKER_SLOT"] = str(context.slot)
    enable_stack_dumps()
    parent_death.drain_when_primary_dies(context.primary, context.parent_pipe, context.inherited)
    set_uvicorn_level(context.again)  # the last worker's traceback is in the log, and one per retry would hide the rest
    app_forks = AppForks(lambda: [listener.fileno() for listener in context.listeners])  # the import may fork, too
    app_metrics.open_files(context.metrics, context.row)  # the import may count, too
    worker = Worker(load(), context, app_forks)
    try:
        return worker.ending.run(worker.work())
    finally:
        flush_streams()


class Worker(uvicorn.Server):
    """A uvicorn server that gets its connections from an `Acceptor` and reports its state on the scoreboard."""

    def __init__(self, config: HttpConfig, context: WorkerContext, app_forks: AppForks) -> None:
        """Write the first heartbeat, with the state STARTING.

        Args:
            config: What the worker runs.
            context: What the worker is given.
            app_forks: Resets the processes that the app forks.
        """
        super().__init__(config)
        self.context = context
        self.row = context.board.row(context.row)
        self.shared = config
        config.stats.open(context.board.requests_row(context.row))
        self.accepting: set[object] = set()  # protocols being attached, of which uvicorn counts some already
        self.request_timeouts = RequestTimeouts(
            context.policy.header_timeout, context.policy.body_timeout, context.policy.write_timeout
        )
        self._app_forks = app_forks
        self._app_forks.sockets = self._sockets
        self._shut_down = ShutDown()
        self._websocket_spread = WebSocketSpread()
        self.ending = Ending()
        self.memory = ResidentMemory()
        self._ticked = 0
        self._busy_ns = self._busy_at = 0
        self._since = self.row[scoreboard.HEARTBEAT] = monotonic_ns()
        self._set_state(State.STARTING)

    async def work(self) -> None:
        """Start the app, serve until SIGTERM, and drain."""
        self.lifespan = self.config.lifespan_class(self.config)
        self.view = ClusterView(self.context.board, self.context.row, self.context.metrics)
        self.lifespan.state["cluster"] = self.view
        await self.startup(sockets=[])
        keep_loggers()  # the lifespan may have configured logging
        # During the startup there is nothing to drain, and SIGTERM must end a long one. So the handlers are set now.
        self._handle_signals()
        self.acceptor = Acceptor(
            self.context.listeners,
            self._attach,
            self._connections,
            self.context.board.total_connections,
            max_connections(),
            room=lambda: self.shared.room(len(self.server_state.tasks)),
        )
        self.server_state.connections = CountedConnections(self._connections)
        self._write_heartbeat()
        self._sample_memory()
        self.recycling = Recycling(self.context.policy, self.row[scoreboard.RSS])
        set_uvicorn_level(False)
        self._set_state(State.READY)
        self.acceptor.start()
        hooks.run_in_thread("worker_ready", hooks.Worker(self.context.slot, self.context.generation, os.getpid()))
        try:
            await self.main_loop()
        finally:
            await self._drain()

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop)
        for number in IGNORED_SIGNALS:
            if signal.getsignal(number) is do_nothing:  # the app has set no handler of its own
                loop.add_signal_handler(number, log_ignored, number)
        for number in (signal.SIGTERM, *IGNORED_SIGNALS):
            self._app_forks.handlers[number] = signal.getsignal(number)

    def _sockets(self) -> Iterator[int]:
        """Yield the descriptors of all listeners and clients."""
        for listener in self.context.listeners:
            yield listener.fileno()
        for connection in self.accepting | self.server_state.connections:
            transport = getattr(connection, "transport", None)
            if transport is not None and (opened := transport.get_extra_info("socket")) is not None:
                yield opened.fileno()
        for accepted in list(self.acceptor.accepting) if hasattr(self, "acceptor") else ():
            yield accepted.fileno()

    def _stop(self) -> None:
        self.should_exit = True
        self._start_graceful_timeout()
        self.view.worker_draining.set()
        # uvicorn calls handle_exit() at this signal. sse-starlette and other libraries replace it to end their streams.
        self.handle_exit(signal.SIGTERM, None)

    def _start_graceful_timeout(self) -> None:
        """Start it at the first SIGTERM, or at the drain of a worker that got none."""
        self.ending.deadline = self.ending.deadline or monotonic() + self.context.policy.graceful_timeout

    def _set_state(self, state: State) -> None:
        self._state = state
        self._write_identity()
        # A full pipe already guarantees a wake-up. A broken pipe means that the primary has exited.
        with suppress(BlockingIOError, BrokenPipeError):
            os.write(self.context.wakeup_pipe, b"!")

    def _write_identity(self) -> None:
        """Write which worker this row belongs to, on every heartbeat, in case the app overwrote it."""
        row = self.row
        row[scoreboard.SLOT], row[scoreboard.ROW_GENERATION] = self.context.slot, self.context.generation
        row[scoreboard.SINCE], row[scoreboard.STATE] = self._since, self._state
        row[scoreboard.PID] = os.getpid()

    async def _attach(self, connection: socket.socket) -> None:
        if (waited := read_accept_wait(connection)) is not None:
            self.shared.stats.count_wait(request_stats.LISTEN_QUEUE, waited)
        protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        self.accepting.add(protocol)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: protocol,
                connection,
                ssl=self.config.ssl,
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT if self.config.ssl else None,
                ssl_shutdown_timeout=CLOSE_TIMEOUT if self.config.ssl else None,
            )
        finally:
            self.accepting.discard(protocol)

    def _connections(self) -> int:
        """Return how many connections are open, and write it to the scoreboard.

        Other workers see it at once, also during a burst.
        """
        joined = self.server_state.connections
        count = len(joined) + len(self.acceptor.accepting) - len(self.accepting & joined)
        self.row[scoreboard.CONNECTIONS] = count
        return count

    async def on_tick(self, counter: int) -> bool:
        """Every 0.1 s write a heartbeat, and every second enforce the limits. Return whether to stop serving."""
        self._write_heartbeat()
        if counter % TICKS_A_SECOND == 0:
            self._sample_memory()
            self._sample_load()
            self._forget_ended_tasks()
            self._retire_when_due()
            self.request_timeouts.enforce(self.server_state.connections, monotonic())
        return await super().on_tick(counter)

    def _write_heartbeat(self) -> None:
        """Write a heartbeat. It is written in the event loop, so that a blocked loop stops it."""
        row, now = self.row, monotonic_ns()
        if self._ticked:
            row[scoreboard.LAG] = max(0, now - self._ticked - int(TICK * 1e9))
        self._ticked = now
        self._write_identity()
        self._connections()
        row[scoreboard.IN_FLIGHT] = len(self.server_state.tasks)
        row[scoreboard.QUEUED] = self.acceptor.queued()
        row[scoreboard.REQUESTS] = self.server_state.total_requests
        row[scoreboard.HEARTBEAT] = now
        self.shared.stats.set_gauge(request_stats.STREAMS, self.shared.streams)
        self.shared.stats.publish()

    def _sample_memory(self) -> None:
        self.row[scoreboard.RSS] = self.memory.read()

    def _forget_ended_tasks(self) -> None:
        """Forget the tasks that were cancelled before they began. All others do that themselves."""
        self.server_state.tasks -= {task for task in self.server_state.tasks if task.done()}

    def _sample_load(self) -> None:
        """Measure for how much of the last second the thread of the event loop used a CPU."""
        used, now = thread_time_ns(), monotonic_ns()
        if self._busy_at:
            share = (used - self._busy_ns) * 1000 // (now - self._busy_at)
            self.shared.stats.set_gauge(request_stats.BUSY, min(share, 1000))
        self._busy_ns, self._busy_at = used, now

    def _retire_when_due(self) -> None:
        """Ask to be replaced when a limit is reached, and keep serving until the replacement is ready."""
        reason = self.recycling.reason(self.server_state.total_requests, self.row[scoreboard.RSS])
        if reason and self._state is State.READY:
            logger.info("the worker is to be replaced: %s", reason)
            self._set_state(State.RETIRING)

    async def _drain(self) -> None:
        """Stop accepting, finish the requests and close all connections. Then end the app's lifespan, in any case."""
        self._start_graceful_timeout()
        try:
            await self._finish(asyncio.get_running_loop().time() + self.ending.deadline - monotonic())
        finally:
            self.ending.reported |= self.server_state.tasks | _lifespan_tasks()
            try:
                limit = max(MIN_LIFESPAN_END, self.ending.deadline - monotonic())
                await asyncio.wait_for(self.lifespan.shutdown(), limit)
            except TimeoutError:
                logger.warning("the app's lifespan did not end in time: it is cancelled, and its stack follows")
                # With "on", uvicorn logs the traceback of the cancellation. It shows where the lifespan hung.
                self.config.lifespan = "on"
                logging.getLogger("uvicorn.error").removeFilter(_is_no_cancellation)
            self._write_heartbeat()

    async def _finish(self, deadline: float) -> None:
        """Answer requests on open connections for `linger` seconds, then close idle connections."""
        loop = asyncio.get_running_loop()
        # They also need time for the answer to 1012.
        self._websockets_until = monotonic() + self.context.policy.websocket_drain
        self._websockets_until = min(self._websockets_until, self.ending.deadline - CANCEL_GRACE)
        self.acceptor.stop(last=self.context.board.draining)
        self._set_state(State.DRAINING)
        self.view.worker_draining.set()
        self.config.encoded_headers.append((b"connection", b"close"))
        await super().on_tick(0)  # uvicorn builds its default headers again
        # uvicorn's shutdown() closes idle connections at once. They stay open here for a while, because a client may be
        # sending a request at this moment.
        await self._wait_until_idle(min(deadline, loop.time() + self.context.policy.linger), spare_idle=True)
        await self.acceptor.finish()
        await self._wait_until_idle(deadline, spare_idle=False)
        await self._cut()

    async def _wait_until_idle(self, deadline: float, spare_idle: bool) -> None:
        loop = asyncio.get_running_loop()
        ticks = 0
        state = self.server_state
        while state.connections or state.tasks or self.acceptor.accepting:
            if ticks % DRAIN_TICKS_A_SECOND == 0:
                await super().on_tick(0)  # uvicorn renews the Date header
                self._forget_ended_tasks()
                self.request_timeouts.enforce(state.connections, monotonic())
                self._shut_down(
                    connection
                    for connection in list(state.connections)
                    if not is_in_handshake(connection)
                    and not is_websocket(connection)
                    and not (spare_idle and is_idle(connection))
                )
            websockets = [each for each in state.connections if is_websocket(each) and each not in self._shut_down]
            self._shut_down(self._websocket_spread.due(websockets, monotonic(), self._websockets_until))
            if loop.time() >= deadline:
                break
            await asyncio.sleep(DRAIN_TICK)
            self._write_heartbeat()
            ticks += 1

    async def _cut(self) -> None:
        """Cancel the requests that run at the deadline, then abort the connections that are left.

        Tracebacks of the app are not logged, because they would only show the cancellation.
        """
        if tasks := list(self.server_state.tasks):
            logger.warning("%d requests cancelled at the graceful timeout", len(tasks))
            logging.getLogger("uvicorn.error").addFilter(_is_no_cancellation)
            for task in tasks:
                task.cancel(msg="the graceful timeout is over")
            await asyncio.wait(tasks, timeout=CANCEL_GRACE)
        for connection in list(self.server_state.connections):
            connection.transport.abort()  # the client has not read its response


def _lifespan_tasks() -> set[asyncio.Task[Any]]:
    """Return the task in which uvicorn runs the app's lifespan, if it has not ended."""
    code = LifespanOn.main.__code__
    return {task for task in asyncio.all_tasks() if getattr(task.get_coro(), "cr_code", None) is code}


def _is_no_cancellation(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))
