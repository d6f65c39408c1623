"""`serve`, the entry point of this package: it runs an app until it receives a stop signal."""

import gc
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from selectors import DefaultSelector
from typing import Any, NoReturn

from everycore.environ import package_of
from everycore.server import cpus, systemd
from everycore.server.channel import Channel
from everycore.server.children import Children
from everycore.server.listeners import describe
from everycore.server.loaded_files import LoadedFiles, typed_directory
from everycore.server.logging import flush_streams, release_streams
from everycore.server.policy import Policy
from everycore.server.primary import Primary
from everycore.server.process import Title, inherit_orphans, raise_open_files
from everycore.server.reloading import Reloader
from everycore.server.resources import Resources
from everycore.server.run_dir import RunDir
from everycore.server.signals import SignalQueue
from everycore.server.template import Templates

logger = logging.getLogger(__name__)


def serve(target: str, binds: Sequence[str], workers: int | None, policy: Policy, run_dir: Path, **options: Any) -> int:
    """Run an app in the foreground until this process receives a stop signal.

    Args:
        target: "module:attribute" of an ASGI app, or of a factory that takes no arguments.
        binds: Addresses, such as "127.0.0.1:8000". See `open_listener`.
        workers: Number of workers. None means one for each available CPU, which each reload counts again.
        policy: Timeouts and limits.
        run_dir: Directory for the scoreboard and the lock, one for each server.
        options: Options of `load` and of uvicorn.Config.

    Returns:
        The exit code: 0 after a requested stop, 3 if no worker became ready.

    Raises:
        LoadError: The app cannot be loaded.
        SettingsError: The app refuses one of its settings.
        BindError: An address cannot be bound.
        RunDirError: The run directory is in use or cannot be used.
    """
    if sockets := systemd.listen_fds(os.environ):
        logger.info("service manager opened the sockets (LISTEN_FDS); BIND is not used")
        binds = [f"fd://{fd}" for fd in sockets]
    if raised := raise_open_files():
        logger.info("limit of open files raised from %d to %d", *raised)
    directory = typed_directory()
    signals = SignalQueue()  # before the lock names this pid, because commands may then send signals to it
    resources = Resources.acquire(RunDir(run_dir), binds)
    files = LoadedFiles(package_of(target), directory)
    inherits = inherit_orphans()
    selector = DefaultSelector()

    def run_template(channel: Channel, generation: int, imports: bool) -> NoReturn:
        """In a forked process: release what only the primary uses, and become a template process."""
        # They are not loaded in the primary, so a reload replaces the libraries that they need.
        from everycore.server import template_forks, template_process

        signals.close()
        selector.close()
        templates.close_in_child()
        resources.close_in_child()
        assignment = template_forks.Assignment(target, options, primary, inherits, files, resources, policy, title)
        template_process.run(channel, assignment, generation, imports)

    def count_workers() -> int:
        return workers or cpus.available_cpus()[0]

    primary = os.getpid()
    title = Title(package_of(target))
    title.set("primary")
    templates = Templates(run_template, selector, inherits)
    children = Children(count_workers())
    scheme = "https" if options.get("ssl_certfile") else "http"
    reloader = Reloader(
        templates=templates,
        board=resources.board,
        children=children,
        policy=policy,
        files=files,
        count_workers=count_workers,
        banner=f"serving {target} on {', '.join(describe(opened, scheme) for opened in resources.listeners)}",
    )
    flush_streams()
    # The garbage collector ignores frozen objects. So in a template process it never copies memory of the primary.
    gc.freeze()
    try:
        return Primary(
            resources=resources,
            children=children,
            policy=policy,
            signals=signals,
            selector=selector,
            templates=templates,
            reloader=reloader,
        ).run()
    finally:
        templates.end()
        resources.release()
        logger.info("stopped")
        release_streams()
