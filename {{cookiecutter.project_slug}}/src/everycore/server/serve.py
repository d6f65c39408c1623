"""The package's front door: `serve` runs an app on a cluster until it is told to stop."""

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
    """Run `target` ("module:attribute") with `workers` workers on all of `binds`; return the exit code.

    `options` go to uvicorn.Config. Raises LoadError, BindError or RunDirError when it cannot start.
    """
    if handover.is_check():
        if not handover.is_compatible():
            raise LoadError("this version keeps another scoreboard: stop and start it instead of a reload.")
        parent_death.die_with_parent(handover.requester_pid())
        preload(target, **options)
        return 0
    if reexec_state := handover.load_state():
        primary = _take_over(reexec_state, target, workers, policy, run_dir=RunDir(run_dir), options=options)
    else:
        primary = _begin(target, binds, workers, policy, run_dir=RunDir(run_dir), options=options)
    enable_stack_dumps()  # here and not in the worker alone: a child may hang between its fork and its start
    flush_streams()
    try:
        return primary.run()
    finally:
        primary.resources.release()
        logger.info("stopped")
        release_streams()


def _begin(
    target: str, binds: Sequence[str], workers: int, policy: Policy, *, run_dir: RunDir, options: dict[str, Any]
) -> Primary:
    if sockets := systemd.listen_fds(os.environ):
        logger.info("the service manager has opened the sockets (LISTEN_FDS): BIND is not used")
        binds = [f"fd://{fd}" for fd in sockets]
    if raised := raise_open_files():
        logger.info("limit of open files raised from %d to %d", *raised)
    config = preload(target, **options)
    signals = SignalQueue()  # from here on others can find us
    resources = Resources.acquire(run_dir, binds)
    where = ", ".join(describe(opened, "https" if config.is_ssl else "http") for opened in resources.listeners)
    logger.info("%s on %s with %s", target, where, counted(workers, "worker"))
    return Primary(config, resources, Children(workers), policy, signals)


def _take_over(
    reexec_state: ReexecState, target: str, workers: int, policy: Policy, *, run_dir: RunDir, options: dict[str, Any]
) -> Primary:
    """Go on where the image before this one stopped; with its workers alone if the new code does not load."""
    signals = SignalQueue()  # a re-executed primary starts with all signals blocked
    run_dir.lock_again(reexec_state.lock)
    config, refusal = None, ""
    try:
        config = preload(target, **options)
    except LoadError as error:
        refusal = str(error)
    resources = Resources.inherit(run_dir, reexec_state)
    children = Children(reexec_state.scaled or workers, reexec_state.generation + (config is not None))
    for child in children_of(reexec_state):
        children.register(child)
    primary = Primary(config, resources, children, policy, signals)
    primary.reloader.scaled = reexec_state.scaled
    if config is None:
        # The check passed and this did not: the code changed in between. The old workers know how to serve.
        primary.reloader.fail(refusal)
    else:
        primary.reloader.handed_over = True
        _log_number(children.wanted, resources.board.header[scoreboard.WANTED], workers)
        logger.info("reload: generation %d takes over from %s", children.generation, counted(len(children), "worker"))
    return primary


def _log_number(wanted: int, before: int, configured: int) -> None:
    """Say in a reload when the number of workers changes, or is kept though the settings or the CPUs say another."""
    if wanted != before:
        logger.info("reload: %s instead of %d", counted(wanted, "worker"), before)
    elif wanted != configured:
        logger.info("reload: %s kept, as set by scale; WEB_CONCURRENCY means %d", counted(wanted, "worker"), configured)
