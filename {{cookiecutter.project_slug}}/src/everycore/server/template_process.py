"""What a template process runs: it imports the app, reports the result, and forks workers (template_forks.py)."""

import gc
import importlib
import logging
import os
import sys
from typing import NoReturn

from everycore.environ import SettingsError, package_of
from everycore.server import app_metrics, fork_safety, hooks
from everycore.server.channel import Channel
from everycore.server.http import HttpConfig
from everycore.server.import_errors import LoadError
from everycore.server.loaded_files import LoadedFiles
from everycore.server.loading import load
from everycore.server.logging import flush_streams, keep_loggers, set_process
from everycore.server.owner_pipe import OwnerPipe
from everycore.server.parent_death import die_with_parent
from everycore.server.process import enable_stack_dumps, prefer_as_oom_victim
from everycore.server.revision import find_revision
from everycore.server.signals import reset_signals
from everycore.server.template_forks import Assignment, Forks, Inherited, Parent

# New objects after which a worker looks for garbage. With the 2,000 of Python, or 700 before 3.13, the objects of 32
# requests that wait for Redis have it look in each round of the event loop, which takes 8 % of such requests.
YOUNG_OBJECTS = 10_000

logger = logging.getLogger(__name__)


def run(channel: Channel, assignment: Assignment, generation: int, imports: bool) -> NoReturn:
    """Import the app, report the result, and fork workers until the primary closes its end.

    Args:
        channel: The connection to the primary.
        assignment: What this process is started with.
        generation: That of its workers, if the app can be loaded.
        imports: Whether to import the app here, once, and not in each worker.
    """
    code = 1
    try:
        set_process("template", generation=generation)
        assignment.title.set("template", generation)
        enable_stack_dumps()
        die_with_parent(assignment.primary)
        prefer_as_oom_victim()
        reset_signals()
        owner_pipe = OwnerPipe()  # for the processes that the import starts
        forks = Forks(channel, assignment.resources.listeners, assignment.primary)
        os.register_at_fork(after_in_child=forks.begin)  # before those of the app, which may hang
        os.register_at_fork(after_in_child=owner_pipe.tie_fork)
        owner_pipe.tie_started_processes()
        app_metrics.keep_values_in_files()
        before = fork_safety.Before.take()
        gc.set_threshold(YOUNG_OBJECTS)  # before the import, so that the app may set another
        hooks.forget()  # the command line may have imported a part of the app
        os.environ.pop("WORKER_SLOT", None)  # another server may have started this one
        revision = find_revision(assignment.files.directory, os.environ)  # before the import, which may take seconds
        config = _import_app(channel, assignment) if imports else None
        if config is not None or not imports:
            shared = fork_safety.find_shared(before, assignment.target, config.app) if config is not None else []
            # The garbage collector would write to, and so copy, memory that workers share. A collection before this
            # would take 14 ms and end up in more copied memory.
            gc.freeze()
            flush_streams()
            owner_pipe.tie_no_more()
            found = {"shared": shared, "revision": revision, "hooks": hooks.registered()}
            if channel.send(**found):  # a child of the import may have come here, too
                kind = Inherited if assignment.inherits else Parent
                kind(
                    channel,
                    assignment,
                    owner_pipe,
                    forks,
                    load=lambda: _load_app(assignment) if config is None else config,
                    load_timeout=assignment.policy.boot_timeout if config is None else 0.0,
                    generation=generation,
                ).work()
        code = 0
    except BaseException:
        logger.exception("the template process failed")
    finally:
        flush_streams()
        os._exit(code)


def _import_app(channel: Channel, assignment: Assignment) -> HttpConfig | None:
    """Import the app, or report why that fails."""
    try:
        return _load_app(assignment, before_fork=True)
    except SettingsError as error:
        channel.send(reason=str(error.args[0]), traceback="", settings=list(error.args))
    except LoadError as error:
        channel.send(reason=str(error), traceback=error.traceback, settings=[])
    return None


def _load_app(assignment: Assignment, before_fork: bool = False) -> HttpConfig:
    """Import the app as a new process would, and undo what the import has changed in this process for the server.

    Args:
        assignment: What the template process is started with.
        before_fork: Whether to run the hooks of this name.
    """
    try:
        _follow_release(assignment.files)
        _forget_app(assignment.target)
        config = load(assignment.target, **assignment.options)
        if before_fork:
            hooks.run("before_fork")
        return config
    finally:
        keep_loggers()
        reset_signals()


def _follow_release(files: LoadedFiles) -> None:
    """Change to the directory by the path that was typed, because a deploy may have switched a link in it."""
    try:
        os.chdir(files.directory)
    except OSError as error:
        raise LoadError(
            f"the directory {files.directory} cannot be entered: {error.strerror}. Restart the server in another one."
        ) from None
    sys.path[:] = [str(files.moved(entry)) if os.path.isabs(entry) else entry for entry in sys.path]
    importlib.invalidate_caches()


def _forget_app(target: str) -> None:
    """Remove the app's package from the loaded modules. The command line has loaded it, perhaps an older version."""
    package = package_of(target)
    if package != __name__.partition(".")[0]:
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            del sys.modules[name]
