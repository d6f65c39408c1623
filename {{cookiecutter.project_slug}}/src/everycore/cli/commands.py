"""The commands. Each error is one line that says what to do; exit codes: 0 stopped, 1 error, 2 usage, 3 never ready."""

import asyncio
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

from everycore.cli import checks
from everycore.cli.control import ClusterControl, ControlError, headline, table
from everycore.environ import SettingsError
from everycore.server import cpus, handover, import_errors, proxies
from everycore.server.listeners import BindError, BindUsageError
from everycore.server.loading import LoadError
from everycore.server.logging import configure, counted, release_streams
from everycore.server.primary import WORKER_BOOT_ERROR
from everycore.server.run_dir import RunDirError
from everycore.server.serve import serve as serve_cluster
from everycore.server.settings import MAX_WORKERS, ServerSettings, default_run_dir
from everycore.state.settings import DEVELOPMENT, StateSettings

app_option = click.option(
    "--app",
    "target",
    default=lambda: own_app(),
    required=True,
    help="An ASGI app or factory, as module:attribute.",
)


def own_app() -> str | None:
    """Return the app that this command line was made for, None for `python -m everycore`."""
    app: str | None = click.get_current_context().obj
    return app


def run_dir(settings: ServerSettings, app: str | None) -> Path:
    """Return where the primary of an app keeps its scoreboard, by default a folder of its name."""
    return settings.run_dir or default_run_dir(app or "everycore")


def fail(message: str, code: int = 1) -> NoReturn:
    with suppress(OSError):  # the exit code holds also where the message cannot be written
        click.echo(f"error: {message}", err=True)
    release_streams()
    sys.exit(code)


def read_settings() -> ServerSettings:
    """Read the server's settings from the environment, or end with exit code 2."""
    try:
        return ServerSettings.from_environ()
    except SettingsError as error:
        refuse(error)


def refuse(error: SettingsError) -> NoReturn:
    """End with exit code 2, and a line for each setting that cannot be used."""
    *others, last = error.args
    for fault in others:
        click.echo(f"error: {fault}", err=True)
    fail(last, 2)


def developing() -> bool:
    """Whether a traceback is wanted. In production it is one line, and the traceback with LOG_LEVEL=debug."""
    return os.environ.get("APP_ENV") == DEVELOPMENT


class Commands(click.Group):
    """Whatever goes wrong in a command unforeseen is one line too."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
            raise  # click's own ways to end
        except Exception as error:
            logging.getLogger(__name__).debug("%s failed", ctx.info_name, exc_info=True)
            if developing():
                click.echo(import_errors.format_traceback(error), err=True)
            fail(import_errors.summarize(error, __name__))


@click.command()
@app_option
@click.option(
    "--bind", help="HOST:PORT, unix:PATH[?mode=660] or fd://N; several with commas.  [default: 127.0.0.1:8000]"
)
@click.option("--workers", help="How many, or auto.  [default: auto]")
def serve(target: str, bind: str | None, workers: str | None) -> None:
    """Run the primary in the foreground."""
    for name, value in (("BIND", bind), ("WEB_CONCURRENCY", workers)):
        if value is not None:
            os.environ[name] = value
    settings = read_settings()
    configure(settings.log_level)
    if target == own_app() and not handover.is_reexec():
        try:
            state = StateSettings.for_app(target)
        except SettingsError as error:
            refuse(error)
        for finding in asyncio.run(checks.on_redis(state, rights=False)):
            if finding.code:
                fail(finding.text, finding.code)
            logging.getLogger(__name__).warning("%s", finding.text)
    count, reason = (settings.workers, "as asked") if settings.workers else cpus.available_cpus()
    if not handover.is_reexec():
        logging.getLogger(__name__).info("%s: %s", counted(count, "worker"), reason)
        for sentence in proxies.check_trusted(settings.forwarded_allow_ips):
            logging.getLogger(__name__).warning("%s", sentence)
    try:
        code = serve_cluster(
            target,
            settings.bind,
            count,
            settings.policy(),
            run_dir(settings, target),
            **settings.uvicorn_options(),
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
    """Find out whether `serve` would start and serve: settings, app, addresses, Redis. Each fault is a line."""
    logging.basicConfig(format="warning: %(message)s")  # such as threads that an import started
    logging.getLogger("everycore.state").setLevel(logging.ERROR)  # an outage is found, and told once
    try:
        settings = ServerSettings.from_environ()
        findings = checks.find(target, settings, run_dir(settings, target), target == own_app())
    except SettingsError as error:
        findings = checks.settings_alone(target, error)
    code = 0
    for finding in findings:
        click.echo(str(finding), err=True)
        code = code or finding.code
    if code:
        sys.exit(code)
    click.echo("ok")


@click.command()
@app_option
@click.option("--bind", default="127.0.0.1:8000", show_default=True)
@click.option("--workers", default="2", show_default=True)
def dev(target: str, bind: str, workers: str) -> None:
    """Run for development: reload on change, and an embedded Redis unless REDIS_URL names one."""
    from everycore.cli.dev import DevError
    from everycore.cli.dev import dev as run_dev
    from everycore.cli.dev_redis import RedisServerError

    try:
        sys.exit(run_dev(target, ["--bind", bind, "--workers", workers]))
    except (DevError, RedisServerError) as error:
        fail(str(error))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@click.option("--watch", is_flag=True, help="Show it live, until Ctrl-C.")
def status(as_json: bool, watch: bool) -> None:
    """Show the running cluster, as its scoreboard has it."""
    with operating() as running:
        if watch:
            from everycore.cli.status_view import watch as watch_board

            watch_board(running.snapshot, running.gone, headline)
        else:
            seen = running.snapshot()
            click.echo(json.dumps(asdict(seen)) if as_json else table(seen))


@click.command()
def reload() -> None:
    """Load the new code and wait until the old workers are gone; exit 1, with the reason, if a request may be lost."""
    with operating() as running:
        running.reload()


@click.command()
@click.argument("workers", type=click.IntRange(1, MAX_WORKERS))
def scale(workers: int) -> None:
    """Have so many WORKERS from now on."""
    with operating() as running:
        running.scale(workers)


@click.command()
def stop() -> None:
    """Stop gracefully, and wait for it."""
    with operating() as running:
        running.stop()


@contextmanager
def operating() -> Iterator[ClusterControl]:
    try:
        yield ClusterControl(run_dir(read_settings(), own_app()))
    except ControlError as error:
        fail(str(error))


def commands(app: str | None = None) -> click.Group:
    """Return the command line. An app adds commands of its own with `@main.command()`.

    Args:
        app: What `--app` is by default, as "module:attribute".
    """
    return Commands(
        "everycore",
        {str(command.name): command for command in (serve, dev, check, status, reload, scale, stop)},
        help="Run this app, or any ASGI app, on every core.",
        context_settings={"help_option_names": ["-h", "--help"], "obj": app},
    )
