"""The commands. Each error is one line that says what to do; exit codes: 0 stopped, 1 error, 2 usage, 3 never ready."""

import asyncio
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import NoReturn, TypeVar

import click

from everycore.cli.control import ClusterControl, ControlError, headline, table
from everycore.environ import EnvironSettings, SettingsError
from everycore.server import cpus, handover, proxies
from everycore.server.listeners import BindError, BindUsageError
from everycore.server.loading import LoadError, preload
from everycore.server.logging import configure
from everycore.server.primary import WORKER_BOOT_ERROR
from everycore.server.run_dir import RunDirError
from everycore.server.serve import serve as serve_cluster
from everycore.server.settings import MAX_WORKERS, ServerSettings
from everycore.state.settings import StateSettings

app_option = click.option(
    "--app",
    "target",
    default=lambda: click.get_current_context().obj,
    required=True,
    help="An ASGI app or factory, as module:attribute.",
)

Settings = TypeVar("Settings", bound=EnvironSettings)


def fail(message: str, code: int = 1) -> NoReturn:
    click.echo(f"error: {message}", err=True)
    sys.exit(code)


def read_settings(kind: type[Settings]) -> Settings:
    """Read the settings of a kind from the environment, or end with exit code 2."""
    try:
        return kind.from_environ()
    except SettingsError as error:
        fail(str(error), 2)


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
    settings = read_settings(ServerSettings)
    configure(settings.log_level)
    if target == click.get_current_context().obj and not handover.is_reexec():
        state = read_settings(StateSettings)
        require_redis(state)
        for sentence in advice(state):
            logging.getLogger(__name__).warning("%s", sentence)
    count, reason = (settings.workers, "as asked") if settings.workers else cpus.available_cpus()
    if not handover.is_reexec():
        logging.getLogger(__name__).info("%d workers: %s", count, reason)
        for sentence in proxies.advice(settings.forwarded_allow_ips):
            logging.getLogger(__name__).warning("%s", sentence)
    try:
        code = serve_cluster(
            target,
            settings.bind,
            count,
            settings.policy(),
            settings.run_dir,
            **settings.uvicorn_options(),
        )
    except SettingsError as error:
        fail(str(error), 2)
    except LoadError as error:
        fail(str(error), WORKER_BOOT_ERROR)
    except (BindError, RunDirError) as error:
        fail(str(error), 2 if isinstance(error, BindUsageError) else 1)
    sys.exit(code)


def require_redis(settings: StateSettings) -> None:
    from everycore.state.client.connect import connection_error

    if reason := asyncio.run(connection_error(settings.redis_url, settings.redis_timeout)):
        fail(f"Redis does not answer at REDIS_URL ({_without_password(settings.redis_url)}): {reason}")


def advice(settings: StateSettings) -> list[str]:
    """On the Redis of production: the one of `dev` keeps nothing, and is not meant to."""
    from everycore.cli.redis_advice import check_server
    from everycore.state.client.connect import connect

    async def ask() -> list[str]:
        async with connect(settings.redis_url, settings.redis_timeout) as redis:
            return await check_server(redis)

    return asyncio.run(ask()) if settings.production else []


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('?')[0].rpartition('@')[2]}"


@click.command()
@app_option
def check(target: str) -> None:
    """Find out whether `serve` would start: settings, app, Redis."""
    settings = read_settings(ServerSettings)
    try:
        preload(target, **settings.uvicorn_options())
    except SettingsError as error:
        fail(str(error), 2)
    except LoadError as error:
        fail(str(error), WORKER_BOOT_ERROR)
    warnings = proxies.advice(settings.forwarded_allow_ips)
    if target == click.get_current_context().obj:
        state = read_settings(StateSettings)
        require_redis(state)
        warnings += advice(state)
    for sentence in warnings:
        click.echo(f"warning: {sentence}", err=True)
    click.echo("ok")


@click.command()
@app_option
@click.option("--bind", default="127.0.0.1:8000", show_default=True)
@click.option("--workers", default="2", show_default=True)
def dev(target: str, bind: str, workers: str) -> None:
    """Run for development: reload on change, and an embedded Redis unless REDIS_URL names one."""
    from everycore.cli.dev import dev as run_dev
    from everycore.cli.dev_redis import RedisServerError

    try:
        sys.exit(run_dev(target, ["--bind", bind, "--workers", workers]))
    except RedisServerError as error:
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
    """Load the new code, with no request lost; exit 1, with the reason, if the old code serves on."""
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
        yield ClusterControl(read_settings(ServerSettings).run_dir)
    except ControlError as error:
        fail(str(error))


def commands(app: str | None = None) -> click.Group:
    """Return the command line. An app adds commands of its own with `@main.command()`.

    Args:
        app: What `--app` is by default, as "module:attribute".
    """
    return click.Group(
        "everycore",
        {str(command.name): command for command in (serve, dev, check, status, reload, scale, stop)},
        help="Run this app, or any ASGI app, on every core.",
        context_settings={"help_option_names": ["-h", "--help"], "obj": app},
    )
