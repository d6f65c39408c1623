"""One worker: a uvicorn.Server that accepts fairly, beats and drains.

It runs in a forked child whose app is imported already. It knows its own row of the board, its primary only
as the far end of two pipes, and no sibling.
"""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic, monotonic_ns
from typing import NoReturn

import uvicorn
import uvloop

from everycore.server import parent_death, scoreboard
from everycore.server.acceptor import Acceptor
from everycore.server.app_forks import AppForks
from everycore.server.children import State
from everycore.server.connections import ShutDown, is_idle, is_in_handshake
from everycore.server.logging import flush_streams, set_process_name, set_uvicorn_level
from everycore.server.policy import Policy, Recycling
from everycore.server.process import ResidentMemory, enable_stack_dumps, max_connections, prefer_as_oom_victim
from everycore.server.request_timeouts import RequestTimeouts
from everycore.server.scoreboard import Scoreboard
from everycore.server.signals import IGNORED_SIGNALS, do_nothing, log_ignored, signals_blocked
from everycore.server.view import ClusterView

TICK, TICKS_A_SECOND = 0.1, 10  # uvicorn's own, in seconds
DRAIN_TICK, DRAIN_TICKS_A_SECOND = 0.02, 50  # shorter: a drain should end when its last connection does
HANDSHAKE_TIMEOUT = 10.0  # seconds for TLS
CLOSE_TIMEOUT = (
    3600.0  # seconds; request_timeouts.py looks after it: uvloop's own 30 s would cut a client that reads slowly
)
CANCEL_GRACE = 1.0  # seconds for what a cancelled request does at its end

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerContext:
    """What a worker is given at its fork."""

    slot: int
    generation: int
    row: int
    board: Scoreboard
    listeners: Sequence[socket.socket]
    policy: Policy
    parent_pipe: int  # read end: end of file when the primary is gone
    wakeup_pipe: int  # write end: a byte tells the primary to look at the board
    again: bool  # the one before it in this slot died before it was ready


def fork(config: uvicorn.Config, make_context: Callable[[], WorkerContext]) -> int:
    """Return the pid of a new worker that runs `config`.

    `make_context` is called in the child, and lets go of what is the primary's alone. SIGABRT is not held back: it
    shows where a child hangs before it has started.

    Raises:
        OSError: There can be no other process now.
    """
    with signals_blocked(but=[signal.SIGABRT]):
        pid = os.fork()
        if pid == 0:
            _live(config, make_context)
    return pid


def _live(config: uvicorn.Config, make_context: Callable[[], WorkerContext]) -> NoReturn:
    """Never returns to the primary's loop."""
    code = 1
    try:
        context = make_context()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        code = run(config, context)
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        logger.exception("the worker failed")
    finally:
        os._exit(code & 0xFF)  # as sys.exit does: an OverflowError would let the child remove the primary's files


def run(config: uvicorn.Config, context: WorkerContext) -> int:
    """Serve until asked to stop; return the exit code. To be called in the forked child, signals unblocked."""
    set_process_name(f"worker={context.slot} gen={context.generation}")
    enable_stack_dumps()
    prefer_as_oom_victim()
    parent_death.drain_when_parent_dies(context.parent_pipe)
    set_uvicorn_level(context.again)  # its predecessor's traceback is in the log; one for each fork would bury the rest
    worker = Worker(config, context)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(worker.work())
    finally:
        flush_streams()
    return 0


class Worker(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, context: WorkerContext) -> None:
        super().__init__(config)
        self.context = context
        self.row = context.board.row(context.row)
        self.accepting: set[object] = set()  # protocols being attached; uvicorn knows some of them already
        self.request_timeouts = RequestTimeouts(
            context.policy.header_timeout, context.policy.body_timeout, context.policy.write_timeout
        )
        self._app_forks = AppForks(self._sockets)
        self._shut_down = ShutDown()
        self.memory = ResidentMemory()
        self._ticked = 0
        self._since = self.row[scoreboard.HEARTBEAT] = monotonic_ns()
        self._set_state(State.STARTING)

    async def work(self) -> None:
        self.lifespan = self.config.lifespan_class(self.config)
        self.view = ClusterView(self.context.board, self.context.row)
        self.lifespan.state["cluster"] = self.view
        await self.startup(sockets=[])
        # Only now: before, there is nothing to drain, and SIGTERM ends a startup that may take long.
        self._handle_signals()
        self.acceptor = Acceptor(
            self.context.listeners,
            self._attach,
            self._connections,
            self.context.board.total_connections,
            max_connections(),
        )
        self._write_heartbeat()
        self._sample_memory()
        self.recycling = Recycling(self.context.policy, self.row[scoreboard.RSS])
        set_uvicorn_level(False)
        self._set_state(State.READY)
        self.acceptor.start()
        try:
            await self.main_loop()
        finally:
            await self._drain()

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop)
        for number in IGNORED_SIGNALS:
            if signal.getsignal(number) is do_nothing:  # and not the app's own
                loop.add_signal_handler(number, log_ignored, number)
        for number in (signal.SIGTERM, *IGNORED_SIGNALS):
            self._app_forks.handlers[number] = signal.getsignal(number)

    def _sockets(self) -> Iterator[int]:
        """The descriptors of all listeners and clients."""
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
        self.view.worker_draining.set()
        # What uvicorn calls at this signal: sse-starlette and others put their own in its place, and end streams by it.
        self.handle_exit(signal.SIGTERM, None)

    def _set_state(self, state: State) -> None:
        self._state = state
        self._write_identity()
        # A full bell has been rung enough, and without a primary nobody listens.
        with suppress(BlockingIOError, BrokenPipeError):
            os.write(self.context.wakeup_pipe, b"!")

    def _write_identity(self) -> None:
        """Again and again, because an app that writes where it should not must not make us a stranger."""
        row = self.row
        row[scoreboard.SLOT], row[scoreboard.ROW_GENERATION] = self.context.slot, self.context.generation
        row[scoreboard.SINCE], row[scoreboard.STATE] = self._since, self._state
        row[scoreboard.PID] = os.getpid()

    async def _attach(self, connection: socket.socket) -> None:
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
        """How many are open; siblings see it on the board at once, also in the middle of a burst."""
        joined = self.server_state.connections
        count = len(joined) + len(self.acceptor.accepting) - len(self.accepting & joined)
        self.row[scoreboard.CONNECTIONS] = count
        return count

    async def on_tick(self, counter: int) -> bool:
        self._write_heartbeat()
        if counter % TICKS_A_SECOND == 0:
            self._sample_memory()
            self._retire_when_due()
            self.request_timeouts.enforce(self.server_state.connections, monotonic())
        return await super().on_tick(counter)

    def _write_heartbeat(self) -> None:
        """Runs in the event loop, so that a blocked loop is seen."""
        row, now = self.row, monotonic_ns()
        if self._ticked:
            row[scoreboard.LAG] = max(0, now - self._ticked - int(TICK * 1e9))
        self._ticked = now
        self._write_identity()
        self._connections()
        row[scoreboard.IN_FLIGHT] = len(self.server_state.tasks)
        row[scoreboard.REQUESTS] = self.server_state.total_requests
        row[scoreboard.HEARTBEAT] = now

    def _sample_memory(self) -> None:
        self.row[scoreboard.RSS] = self.memory.read()

    def _retire_when_due(self) -> None:
        """Ask for a successor, and serve on until the primary has one ready."""
        reason = self.recycling.reason(self.server_state.total_requests, self.row[scoreboard.RSS])
        if reason and self._state is State.READY:
            logger.info("asks for a successor: %s", reason)
            self._set_state(State.RETIRING)

    async def _drain(self) -> None:
        """Stop accepting, finish what began, close every connection, and end the app's lifespan whatever happens."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.context.policy.graceful_timeout
        try:
            await self._finish(deadline)
        finally:
            try:
                await asyncio.wait_for(self.lifespan.shutdown(), max(1.0, deadline - loop.time()))
            except TimeoutError:
                logger.warning("the app's lifespan did not end in time: it is cancelled")
            self._write_heartbeat()

    async def _finish(self, deadline: float) -> None:
        """Answer what comes on open connections for a while, then close what is idle."""
        loop = asyncio.get_running_loop()
        self.acceptor.stop(last=self.context.board.draining)
        self._set_state(State.DRAINING)
        self.view.worker_draining.set()
        self.config.encoded_headers.append((b"connection", b"close"))
        await super().on_tick(0)  # renews the headers
        # uvicorn's shutdown() closes what is idle at once: those linger, because their client may just be sending.
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
                await super().on_tick(0)  # the date
                self.request_timeouts.enforce(state.connections, monotonic())
                self._shut_down(
                    connection
                    for connection in list(state.connections)
                    if not is_in_handshake(connection) and not (spare_idle and is_idle(connection))
                )
            if loop.time() >= deadline:
                break
            await asyncio.sleep(DRAIN_TICK)
            self._write_heartbeat()
            ticks += 1

    async def _cut(self) -> None:
        """End what has not ended by the deadline. The app's tracebacks would only say that it was cancelled."""
        if tasks := list(self.server_state.tasks):
            logger.warning("%d requests cancelled at the graceful timeout", len(tasks))
            logging.getLogger("uvicorn.error").addFilter(_is_no_cancellation)
            for task in tasks:
                task.cancel(msg="the graceful timeout is over")
            await asyncio.wait(tasks, timeout=CANCEL_GRACE)
        for connection in list(self.server_state.connections):
            connection.transport.abort()  # its client has not taken its answer


def _is_no_cancellation(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))
