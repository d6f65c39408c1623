"""`serve`, the entry point of this package: it runs an app until it receives a stop signal."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from everycore.server import handover, parent_death, scoreboard, systemd
from everycore.server.children import Children
from everycore.server.handover import ReexecState
from everycore.server.listeners import describe
from everycore.server.loading import LoadError, preload
from everycore.server.logging import counted, flush_streams, release_streams
from everycore.server.policy import Policy
from everycore.server.primary import Primary
from everycore.server.process import enable_stack_dumps, raise_open_files
from everycore.server.resources import Resources, children_of
from everycore.server.run_dir import RunDir
from everycore.server.signals import SignalQueue

logger = logging.getLogger(__name__)


def serve(target: str, binds: Sequence[str], workers: int, policy: Policy, run_dir: Path, **options: Any) -> int:
    """Run an app in the foreground until this process receives a stop signal.

    Args:
        target: "module:attribute" of an ASGI app, or of a factory that takes no arguments.
        binds: Addresses, such as "127.0.0.1:8000". See `open_listener`.
        workers: Number of workers.
        policy: Timeouts and limits.
        run_dir: Directory for the scoreboard and the lock, one for each server.
        options: Options of `preload` and of uvicorn.Config.

    Returns:
        The exit code: 0 after a requested stop, 3 if no worker became ready.

    Raises:
        LoadError: The app cannot be loaded.
        BindError: An address cannot be bound.
        RunDirError: The run directory is in use or cannot be used.
    """
    if handover.is_check():
        if not handover.is_compatible():
            raise LoadError(
                "the new code uses an incompatible scoreboard version. Restart the server instead of reloading it."
            )
        parent_death.die_with_parent(handover.requester_pid())
        preload(target, **options)
        return 0
    if reexec_state := handover.load_state():
        primary = _resume(reexec_state, target, workers, policy, run_dir=RunDir(run_dir), options=options)
    else:
        primary = _start(target, binds, workers, policy, run_dir=RunDir(run_dir), options=options)
    enable_stack_dumps()  # also for a child that hangs between its fork and the start of its worker
    flush_streams()
    try:
        return primary.run()
    finally:
        primary.resources.release()
        logger.info("stopped")
        release_streams()


def _start(
    target: str, binds: Sequence[str], workers: int, policy: Policy, *, run_dir: RunDir, options: dict[str, Any]
) -> Primary:
    if sockets := systemd.listen_fds(os.environ):
        logger.info("service manager opened the sockets (LISTEN_FDS); BIND is not used")
        binds = [f"fd://{fd}" for fd in sockets]
    if raised := raise_open_files():
        logger.info("limit of open files raised from %d to %d", *raised)
    config = preload(target, **options)
    signals = SignalQueue()  # before the lock names this pid, because commands may then send signals to it
    resources = Resources.acquire(run_dir, binds)
    addresses = ", ".join(describe(opened, "https" if config.is_ssl else "http") for opened in resources.listeners)
    logger.info("serving %s on %s with %s", target, addresses, counted(workers, "worker"))
    return Primary(config, resources, Children(workers), policy, signals)


def _resume(
    reexec_state: ReexecState, target: str, workers: int, policy: Policy, *, run_dir: RunDir, options: dict[str, Any]
) -> Primary:
    """Continue after a re-exec. If the new code does not load, keep the old workers and start none."""
    signals = SignalQueue()  # it unblocks all signals, which are blocked over a re-exec
    run_dir.lock_again(reexec_state.lock)
    config, failure = None, ""
    try:
        config = preload(target, **options)
    except LoadError as error:
        failure = str(error)
    resources = Resources.inherit(run_dir, reexec_state)
    children = Children(reexec_state.scaled or workers, reexec_state.generation + (config is not None))
    for child in children_of(reexec_state):
        children.register(child)
    primary = Primary(config, resources, children, policy, signals)
    primary.reloader.scaled = reexec_state.scaled
    if config is None:
        # The check has passed, so the code has changed since then. The old workers keep serving the old code.
        primary.reloader.fail(failure)
    else:
        primary.reloader.handed_over = True
        _log_worker_count(children.wanted, resources.board.header[scoreboard.WANTED], workers)
        old = counted(len(children), "worker")
        logger.info("reload: generation %d starting, replacing %s", children.generation, old)
    return primary


def _log_worker_count(wanted: int, before: int, configured: int) -> None:
    """Say in a reload when the number of workers changes, or is kept though the settings or the CPUs say another."""
    if wanted != before:
        logger.info("reload: %s instead of %d", counted(wanted, "worker"), before)
    elif wanted != configured:
        logger.info("reload: %s kept, as set by scale; WEB_CONCURRENCY means %d", counted(wanted, "worker"), configured)
