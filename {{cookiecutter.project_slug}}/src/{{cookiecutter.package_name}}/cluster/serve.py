"""The package's front door: `serve` runs an app on a cluster until it is told to stop."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import handover, lifeline, log, systemd
from .handover import Baton
from .listener import describe
from .loading import LoadError, preload
from .policy import Policy
from .primary import Primary
from .resources import Resources, children_of
from .rundir import RunDir
from .signals import SignalQueue
from .slots import Slots

logger = logging.getLogger(__name__)


def serve(target: str, binds: Sequence[str], workers: int, policy: Policy, run_dir: Path, **options: Any) -> int:
    """Run `target` ("module:attribute") with `workers` workers on all of `binds`; return the exit code.

    `options` go to uvicorn.Config. Raises LoadError, BindError or RunDirError when it cannot start.
    """
    if handover.is_check():
        if not handover.fits():
            raise LoadError("this version keeps another scoreboard: stop and start it instead of a reload.")
        lifeline.die_with_parent(handover.asker())
        preload(target, **options)
        return 0
    if baton := handover.take():
        primary = _take_over(baton, target, workers, policy, run_dir=RunDir(run_dir), options=options)
    else:
        primary = _begin(target, binds, workers, policy, run_dir=RunDir(run_dir), options=options)
    log.flush()
    try:
        return primary.run()
    finally:
        primary.resources.release()
        logger.info("stopped")


def _begin(
    target: str, binds: Sequence[str], workers: int, policy: Policy, *, run_dir: RunDir, options: dict[str, Any]
) -> Primary:
    if sockets := systemd.take_sockets(os.environ):
        logger.info("the service manager has opened the sockets (LISTEN_FDS): BIND is not used")
        binds = [f"fd://{fd}" for fd in sockets]
    config = preload(target, **options)
    signals = SignalQueue()  # from here on others can find us
    resources = Resources.acquire(run_dir, binds)
    where = ", ".join(describe(opened, "https" if config.is_ssl else "http") for opened in resources.listeners)
    logger.info("%s on %s with %d workers", target, where, workers)
    return Primary(config, resources, Slots(workers), policy, signals)


def _take_over(
    baton: Baton, target: str, workers: int, policy: Policy, *, run_dir: RunDir, options: dict[str, Any]
) -> Primary:
    """Go on where the image before this one stopped; with its workers alone if the new code does not load."""
    signals = SignalQueue()  # a re-executed primary starts with all signals blocked
    config, refusal = None, ""
    try:
        config = preload(target, **options)
    except LoadError as error:
        refusal = str(error)
    resources = Resources.inherit(run_dir, baton)
    slots = Slots(baton.scaled or workers, baton.generation + (config is not None))
    for child in children_of(baton):
        slots.register(child)
    primary = Primary(config, resources, slots, policy, signals)
    primary.reloading.scaled = baton.scaled
    if config is None:
        # The check passed and this did not: the code changed in between. The old workers know how to serve.
        primary.reloading.refuse(refusal)
    else:
        primary.reloading.handed_over = True
        logger.info("reload: generation %d takes over from %d workers", slots.generation, len(slots))
    return primary
