"""`work`: runs the jobs of an app, in a process of its own. Only an app that has jobs imports docket.

The primary loads this module too, but neither asyncio nor uvicorn.
"""

import importlib.util
import sys
from typing import Any

from everycore.server.logging import set_process


def jobs_installed() -> bool:
    """Return whether docket, the library of the jobs, is installed. It is in a project with the option `jobs`."""
    return importlib.util.find_spec("docket") is not None


def work(target: str, concurrency: int, lease: float) -> None:
    """Run the jobs of an app until a signal, see `everycore.jobs.run_worker`. Without jobs, return at once.

    Raises:
        LoadError: The app cannot be imported.
        SettingsError: The app refuses one of its settings.
    """
    import asyncio

    from everycore.server.loading import find_app

    set_process("work")
    app: Any = find_app(target)
    if "everycore.jobs" not in sys.modules:
        print(f"App {target!r} has no jobs: it does not call everycore.jobs.add_jobs", file=sys.stderr)
        return  # no error, because `dev` runs `work` beside any app
    from everycore.jobs import run_worker

    asyncio.run(run_worker(app, concurrency, lease))
