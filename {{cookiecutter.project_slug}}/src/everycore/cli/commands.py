"""The commands. Each error is one line that says what to do.

Exit codes: 0 stopped as requested, 1 error, 2 usage, 3 no worker became ready.
"""

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import click

from everycore.cli import start_check
from everycore.cli.checkout import Checkout
from everycore.cli.control import ClusterControl, ControlError, headline, table
from everycore.cli.env_file import EnvFileError
from everycore.cli.work import jobs_installed
from everycore.environ import DEVELOPMENT, SettingsError
from everycore.server import cpus, import_errors, proxies
from everycore.server.import_errors import WORKER_BOOT_ERROR, LoadError
from everycore.server.listeners import BindError, BindUsageError
from everycore.server.logging import configure, counted, release_streams
from everycore.server.run_dir import RunDirError
from everycore.server.serve import serve as serve_cluster
from everycore.server.settings import MAX_WORKERS, ServerSettings, default_run_dir

app_option = click.option(
    "--app",
    "target",
    default=lambda: own_app(),  # noqa: PLW0108 - it is defined below
    required=True,
    help="ASGI app or app factory, as module:attribute.",
)


def own_app() -> str | None:
    """Return the app that `commands()` was called with, or None for `python -m everycore`."""
    app: str | None = click.get_current_context().obj
    return app


def run_dir(settings: ServerSettings, app: str | None) -> Path:
    """Return the run directory of an app's primary. The default is named after the app."""
    return settings.run_dir or default_run_dir(app or "everycore")


def run_dir_in_use(settings: ServerSettings, app: str | None) -> Path:
    """Return the run directory of the primary that a command is for: that of this folder's `dev`, if it runs.

    Raises:
        ControlError: Several run.
    """
    if settings.run_dir is None and app is not None and (found := Checkout(app).running()):
        if len(found) > 1:
            names = " or ".join(f"RUN_DIR={path}" for path in found)
            raise ControlError(f"{len(found)} dev servers of this folder are running. Choose one of them: set {names}")
        return found[0]
    return run_dir(settings, app)


def fail(message: str, code: int = 1) -> NoReturn:
    """Print `error: <message>` to stderr and exit.

    Args:
        message: One sentence or more, without a newline: what failed, the cause, and what to do.
        code: The exit code.
    """
    with suppress(OSError):  # the exit code holds also where the message cannot be written
        click.echo(f"error: {message}", err=True)
    release_streams()
    sys.exit(code)


def read_settings() -> ServerSettings:
    """Return the server's settings from the environment. Exit with 2 if one of them cannot be used."""
    try:
        return ServerSettings.from_environ()
    except SettingsError as error:
        refuse(error)


def refuse(error: SettingsError) -> NoReturn:
    """Print one line for each setting that cannot be used, and exit with 2."""
    *others, last = error.args
    for fault in others:
        click.echo(f"error: {fault}", err=True)
    fail(last, 2)


def developing() -> bool:
    """Return whether an error is shown with its traceback. In production only LOG_LEVEL=debug shows it."""
    return os.environ.get("APP_ENV") == DEVELOPMENT


class Commands(click.Group):
    """A group of commands that prints an unexpected error as one line, too."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
            raise  # click handles these itself
        except Exception as error:
            logging.getLogger(__name__).debug("%s failed", ctx.info_name, exc_info=True)
            if developing():
                click.echo(import_errors.format_traceback(error), err=True)
            fail(import_errors.summarize(error, __name__))


@click.command()
@app_option
@click.option(
    "--bind",
    help="HOST:PORT, unix:PATH[?mode=660] or fd://N. Separate several with commas.  "
    "[default: 127.0.0.1:8000, or 0.0.0.0:$PORT]",
)
@click.option("--workers", help="Number of workers, or auto for one per available CPU.  [default: auto]")
@click.option("--dev", "under_dev", is_flag=True, hidden=True)  # what `dev` runs: pages load themselves again
def serve(target: str, bind: str | None, workers: str | None, under_dev: bool) -> None:
    """Run the server in the foreground."""
    for name, value in (("BIND", bind), ("WEB_CONCURRENCY", workers)):
        if value is not None:
            os.environ[name] = value
    settings = read_settings()
    configure(settings.log_level, settings.log_format)
    if target == own_app():
        found = list(start_check.findings(target))
        errors = [(text, code) for text, code in found if code]
        for text, _ in errors[:-1]:
            click.echo(f"error: {text}", err=True)
        if errors:
            fail(*errors[-1])
        for text, _ in found:
            logging.getLogger(__name__).warning("%s", text)
    count, reason = (settings.workers, "as configured") if settings.workers else cpus.available_cpus()
    if not under_dev:  # two, as nobody asked
        logging.getLogger(__name__).info("%s: %s", counted(count, "worker"), reason)
    for sentence in proxies.check_trusted(settings.forwarded_allow_ips):
        logging.getLogger(__name__).warning("%s", sentence)
    options = settings.uvicorn_options()
    if under_dev and developing():
        from everycore.cli.browser_reload import PATHS, TARGET

        options |= {"wrapper": TARGET, "probe_paths": (*settings.probe_paths, *PATHS)}
    try:
        code = serve_cluster(
            target,
            settings.bind,
            settings.workers,
            settings.policy(),
            run_dir(settings, target),
            **options,
        )
    except SettingsError as error:
        refuse(error)
    except LoadError as error:
        if error.traceback and developing():
            click.echo(error.traceback, err=True)
        fail(str(error), WORKER_BOOT_ERROR)
    except (BindError, RunDirError) as error:
        fail(str(error), 2 if isinstance(error, BindUsageError) else 1)
    sys.exit(code)


@click.command()
@app_option
def check(target: str) -> None:
    """Check settings, app, addresses and Redis as `serve` needs them."""
    from everycore.cli import checks

    logging.basicConfig(format="warning: %(message)s")  # for example about threads that an import started
    logging.getLogger("everycore.state").setLevel(
        logging.ERROR
    )  # a finding reports an outage, so no warning repeats it
    try:
        settings = ServerSettings.from_environ()
        findings = checks.find(target, settings, run_dir_in_use(settings, target), target == own_app())
    except ControlError as error:
        fail(str(error))
    except SettingsError as error:
        findings = checks.settings_faults(target, error)
    code = 0
    for finding in findings:
        click.echo(str(finding), err=True)
        code = code or finding.code
    if code:
        sys.exit(code)
    click.echo("ok")


@click.command()
@app_option
@click.option("--bind", help="HOST:PORT or unix:PATH.  [default: 127.0.0.1:8000, or 127.0.0.1:$PORT]")
@click.option("--workers", help="Number of workers.  [default: 2]")
def dev(target: str, bind: str | None, workers: str | None) -> None:
    """Run for development: reload on changes, start a Redis.

    It reads .env; a variable of the environment wins. Without REDIS_URL it starts a Redis that ends with it, and keeps
    its data in the folder .dev.
    """
    from everycore.cli.dev import DevError
    from everycore.cli.dev import dev as run_dev
    from everycore.cli.dev_redis import RedisServerError

    try:
        sys.exit(run_dev(target, bind, workers))
    except (DevError, EnvFileError, RedisServerError) as error:
        fail(str(error))


@click.command(hidden=not jobs_installed())
@app_option
@click.option("--concurrency", default=10, show_default=True, type=click.IntRange(1), help="Number of jobs at once.")
@click.option(
    "--lease",
    default=30.0,
    show_default=True,
    type=click.FloatRange(1),
    help="Seconds without a sign of life of a worker, after which its jobs start again.",
)
def work(target: str, concurrency: int, lease: float) -> None:
    """Run jobs until SIGTERM, then finish those that are running."""
    from everycore.cli.work import work as run_jobs

    settings = read_settings()
    configure(settings.log_level, settings.log_format)
    try:
        run_jobs(target, concurrency, lease)
    except SettingsError as error:
        refuse(error)
    except LoadError as error:
        fail(str(error), WORKER_BOOT_ERROR)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
@click.option("--watch", is_flag=True, help="Refresh the status every second until Ctrl-C.")
def status(as_json: bool, watch: bool) -> None:
    """Show the status of the running server."""
    with running_server() as server:
        if watch:
            from everycore.cli.status_view import watch as watch_status

            watch_status(server.snapshot, server.has_ended, headline)
        else:
            snapshot = server.snapshot()
            click.echo(json.dumps(asdict(snapshot)) if as_json else table(snapshot))


@click.command()
def reload() -> None:
    """Load the new code, then replace all workers.

    The command returns when the old workers have ended. It exits with 1 and the reason if the old code keeps running,
    or if an old worker failed while it drained.
    """
    with running_server() as server:
        click.echo(server.reload())


@click.command()
@click.argument("workers", type=click.IntRange(1, MAX_WORKERS))
def scale(workers: int) -> None:
    """Set the number of workers."""
    with running_server() as server:
        server.scale(workers)


@click.command()
def stop() -> None:
    """Stop the server gracefully, and wait until it has ended."""
    with running_server() as server:
        server.stop()


@click.command()
@app_option
def shell(target: str) -> None:
    """Open Python with the app's redis, sessions, cache and counters.

    `await` works at the top level. The Redis is that of REDIS_URL, or that of this folder's `dev`. Code from a pipe or
    a file runs without a prompt.
    """
    logging.getLogger("everycore.state").setLevel(logging.ERROR)  # the exception of an outage says it already
    from everycore.cli.shell import ShellError
    from everycore.cli.shell import shell as run_shell
    from everycore.state.settings import StateSettings

    try:
        environ = dict(os.environ) if os.environ.get("REDIS_URL") else Checkout(target).environment_of_dev()
        sys.exit(run_shell(StateSettings.for_app(target, environ)))
    except SettingsError as error:
        refuse(error)
    except (EnvFileError, ShellError) as error:
        fail(str(error))


@contextmanager
def running_server() -> Iterator[ClusterControl]:
    """Yield the running server of this app. Print a failure of its control as one line, and exit with 1."""
    try:
        yield ClusterControl(run_dir_in_use(read_settings(), own_app()))
    except ControlError as error:
        fail(str(error))


def commands(app: str | None = None) -> click.Group:
    """Return the command line. An app adds its own commands with `@main.command()`.

    Args:
        app: Default of `--app`, as "module:attribute". Without it every command that runs an app requires `--app`.

    Returns:
        The group of the commands. Call it to run the command that `sys.argv` names.
    """
    return Commands(
        "everycore",
        {str(command.name): command for command in (serve, dev, work, check, status, reload, scale, stop, shell)},
        help="Run this app, or any ASGI app, on every core.",
        context_settings={"help_option_names": ["-h", "--help"], "obj": app},
    )
