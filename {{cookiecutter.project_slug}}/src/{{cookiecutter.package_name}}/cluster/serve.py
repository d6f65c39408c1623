"""The package's front door: `serve` runs an app on a cluster until it is told to stop."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import handover, lifeline, log, systemd
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
        lifeline.die_with_parent()
        if not handover.fits():
            raise LoadError("this version keeps another scoreboard: stop and start it instead of a reload.")
        preload(target, **options)
        return 0
    baton = handover.take()
    # A re-executed primary starts with all signals blocked; another has none yet that they could be for.
    signals = SignalQueue() if baton else None
    if sockets := systemd.take_sockets(os.environ):
        logger.info("the service manager has opened the sockets (LISTEN_FDS): BIND is not used")
        binds = [f"fd://{fd}" for fd in sockets]
    try:
        config = preload(target, **options)
    except LoadError as error:
        if baton is None:
            raise
        config, refusal = None, str(error)
    if baton is None:
        signals = SignalQueue()  # from here on others can find us
        resources = Resources.acquire(RunDir(run_dir), binds)
        slots = Slots(workers)
        scheme = "https" if config and config.is_ssl else "http"
        where = ", ".join(describe(opened, scheme) for opened in resources.listeners)
        logger.info("%s on %s with %d workers", target, where, workers)
    else:
        resources = Resources.inherit(RunDir(run_dir), baton)
        slots = Slots(baton.scaled or workers, baton.generation + (config is not None))
        for child in children_of(baton):
            slots.register(child)
    log.flush()
    assert signals is not None
    primary = Primary(config, resources, slots, policy, signals)
    if baton is not None:
        primary.reloading.scaled = baton.scaled
        if config is None:
            # The check passed and this did not: the code changed in between. The old workers know how to serve.
            primary.reloading.refuse(refusal)
        else:
            primary.reloading.handed_over = True
            logger.info("reload: generation %d takes over from %d workers", slots.generation, len(slots))
    try:
        return primary.run()
    finally:
        resources.release()
        logger.info("stopped")
