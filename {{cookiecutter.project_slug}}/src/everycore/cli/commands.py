"""The commands. Each error is one line that says what to do; exit codes: 0 stopped, 1 error, 2 usage, 3 never ready."""

import asyncio
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, NoReturn

import click
from everycore.web.settings import Settings, SettingsError

from everycore.cli import checks
from everycore.cli.control import ClusterControl, ControlError, headline, table
from everycore.server import cpus, handover, import_errors, proxies
from everycore.server.listeners import BindError, BindUsageError
from everycore.server.loading import LoadError
from everycore.server.logging import configure, counted
from everycore.server.policy import Policy
from everycore.server.primary import WORKER_BOOT_ERROR
from everycore.server.run_dir import RunDirError
from everycore.server.serve import serve as serve_cluster
from everycore.web import settings as settings_module

OWN_APP = f"{__package__}.app:create_app"
SECRETS = ("SECRET_KEY", "SECRET_KEY_FILE", "OPS_TOKEN", "REDIS_URL")

app_option = click.option("--app", "target", default=OWN_APP, help="An ASGI app or factory, as module:attribute.")


def fail(message: str, code: int = 1) -> NoReturn:
    click.echo(f"error: {message}", err=True)
    sys.exit(code)


def read_settings(target: str = OWN_APP) -> Settings:
    # Another app has its own secrets and its own Redis, perhaps in variables of the same names.
    spare = {} if target == OWN_APP else {"APP_ENV": settings_module.DEVELOPMENT, **dict.fromkeys(SECRETS, "")}
    try:
        return settings_module.read({**os.environ, **spare})
    except SettingsError as error:
        *others, last = error.args
        for fault in others:
            click.echo(f"error: {fault}", err=True)
        fail(last, 2)


def developing() -> bool:
    """Whether a traceback is wanted. In production it is one line, and the traceback with LOG_LEVEL=debug."""
    return os.environ.get("APP_ENV") == settings_module.DEVELOPMENT


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
                click.echo(import_errors.whole(error), err=True)
            fail(import_errors.summary(error, __name__))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Run this app, or any ASGI app, on every core."""


@main.command()
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
    settings = read_settings(target)
    configure(settings.log_level)
    if target == OWN_APP and not handover.is_reexec():
        for finding in asyncio.run(checks.on_redis(settings, rights=False)):
            if finding.code:
                fail(finding.text, finding.code)
            logging.getLogger(__name__).warning("%s", finding.text)
    count, reason = (settings.workers, "as asked") if settings.workers else cpus.available_cpus()
    if not handover.is_reexec():
        logging.getLogger(__name__).info("%s: %s", counted(count, "worker"), reason)
        for sentence in proxies.advice(settings.forwarded_allow_ips):
            logging.getLogger(__name__).warning("%s", sentence)
    try:
        code = serve_cluster(
            target,
            settings.bind,
            count,
            _policy(settings),
            settings.run_dir,
            **_options(settings),
        )
    except LoadError as error:
        if error.traceback and developing():
            click.echo(error.traceback, err=True)
        fail(str(error), WORKER_BOOT_ERROR)
    except (BindError, RunDirError) as error:
        fail(str(error), 2 if isinstance(error, BindUsageError) else 1)
    sys.exit(code)


def _policy(settings: Settings) -> Policy:
    return Policy(
        graceful_timeout=settings.graceful_timeout,
        drain_delay=settings.drain_delay,
        linger=settings.linger,
        boot_timeout=settings.boot_timeout,
        hang_timeout=settings.hang_timeout or None,
        header_timeout=settings.header_timeout,
        body_timeout=settings.body_timeout,
        write_timeout=settings.write_timeout,
        max_requests=settings.max_requests,
        max_growth=settings.max_rss_mb * 2**20,
    )


def _options(settings: Settings) -> dict[str, Any]:
    return {
        "access_log": settings.access_log,
        "forwarded_allow_ips": settings.forwarded_allow_ips,
        "root_path": settings.root_path,
        "timeout_keep_alive": settings.keep_alive,
        "ssl_certfile": settings.tls_cert,
        "ssl_keyfile": settings.tls_key,
    }


@main.command()
@app_option
def check(target: str) -> None:
    """Find out whether `serve` would start and serve: settings, app, addresses, Redis. Each fault is a line."""
    settings = read_settings(target)
    logging.basicConfig(format="warning: %(message)s")  # such as threads that an import started
    logging.getLogger(f"{__package__}.state").setLevel(logging.ERROR)  # an outage is found, and told once
    code = 0
    for finding in checks.find(target, settings, _options(settings), target == OWN_APP):
        click.echo(str(finding), err=True)
        code = code or finding.code
    if code:
        sys.exit(code)
    click.echo("ok")


@main.command()
@click.option("--bind", default="127.0.0.1:8000", show_default=True)
@click.option("--workers", default="2", show_default=True)
def dev(bind: str, workers: str) -> None:
    """Run for development: reload on change, and an embedded Redis unless REDIS_URL names one."""
    from everycore.cli.dev import DevError
    from everycore.cli.dev import dev as run_dev
    from everycore.cli.dev_redis import RedisServerError

    try:
        sys.exit(run_dev(["--bind", bind, "--workers", workers]))
    except (DevError, RedisServerError) as error:
        fail(str(error))


@main.command()
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


@main.command()
def reload() -> None:
    """Load the new code and wait until the old workers are gone; exit 1, with the reason, if a request may be lost."""
    with operating() as running:
        running.reload()


@main.command()
@click.argument("workers", type=click.IntRange(1, settings_module.MAX_WORKERS))
def scale(workers: int) -> None:
    """Have so many WORKERS from now on."""
    with operating() as running:
        running.scale(workers)


@main.command()
def stop() -> None:
    """Stop gracefully, and wait for it."""
    with operating() as running:
        running.stop()


@contextmanager
def operating() -> Iterator[ClusterControl]:
    try:
        yield ClusterControl(read_settings("").run_dir)
    except ControlError as error:
        fail(str(error))
