"""The findings of `check`. It tries everything that `serve` needs, and does not disturb a running primary."""

import asyncio
import os
import socket
import ssl
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from everycore import manifest
from everycore.cli.checkout import Checkout
from everycore.environ import DEVELOPMENT, SettingsError
from everycore.server import fork_safety, listeners, proxies
from everycore.server.address_owner import listens
from everycore.server.import_errors import WORKER_BOOT_ERROR, LoadError
from everycore.server.listeners import BindError, BindUsageError
from everycore.server.loading import find_app, load
from everycore.server.run_dir import RunDir, RunDirError
from everycore.server.settings import ServerSettings
from everycore.state.settings import StateSettings

ERROR, USAGE = 1, 2
# The first and the last Python whose incremental garbage collector lets memory grow up to fivefold (cpython #148726).
BAD_PYTHONS = ((3, 14, 0), (3, 14, 4))


@dataclass(frozen=True)
class Finding:
    """One line of `check`.

    Args:
        text: One sentence or more.
        code: The exit code of `check`. 0 if `serve` starts in spite of this finding.
        kind: The word in front of a finding with code 0.
    """

    text: str
    code: int = 0
    kind: str = "warning"

    def __str__(self) -> str:
        return f"{'error' if self.code else self.kind}: {self.text}"


def find(target: str, settings: ServerSettings, run_dir: Path, own: bool) -> Iterator[Finding]:
    """Yield every finding.

    Args:
        target: The app, as "module:attribute".
        settings: The settings of the server.
        run_dir: The run directory, in which a running primary is found.
        own: Whether the app is the project's own, which needs its Redis.
    """
    yield Finding(manifest.describe(), kind="note")
    if (env_file := Checkout(target).env_file).exists():
        yield Finding(f"{env_file} was not read: only dev and Compose read it, serve and check do not.", kind="note")
    yield from on_python(sys.version_info[:3])
    yield from on_tls(settings.tls_cert, settings.tls_key)
    without_tls = {name: value for name, value in settings.uvicorn_options().items() if not name.startswith("ssl_")}
    before = fork_safety.Before.take()
    try:
        config = load(target, **without_tls)
        yield from on_websockets(config)
        if settings.preload == "auto" and (shared := fork_safety.find_shared(before, target, config.app)):
            yield Finding(f"{fork_safety.advice(shared)}.")
    except SettingsError as error:
        yield from (Finding(fault, USAGE) for fault in error.args)
    except LoadError as error:
        yield Finding(str(error), WORKER_BOOT_ERROR)
    yield from map(Finding, proxies.check_trusted(settings.forwarded_allow_ips))
    primary = RunDir(run_dir).owner()
    if primary is None:
        yield from on_run_dir(run_dir)
    yield from on_binds(settings.bind, primary)
    if own:
        try:
            # A missing key is an error above, and Redis can be asked in spite of it.
            state = StateSettings.for_app(target, {**os.environ, "APP_ENV": DEVELOPMENT})
        except SettingsError:
            return  # each fault is an error above
        production = os.environ.get("APP_ENV") != DEVELOPMENT
        yield from asyncio.run(on_redis(state, rights=True, production=production))


def settings_faults(target: str, error: SettingsError) -> Iterator[Finding]:
    """Yield the faults of the server's settings and of the app's settings, so that one run reports them all."""
    yield from (Finding(fault, USAGE) for fault in error.args)
    try:
        find_app(target)
    except SettingsError as own:
        yield from (Finding(fault, USAGE) for fault in own.args)
    except LoadError as failure:
        yield Finding(str(failure), WORKER_BOOT_ERROR)


def on_python(version: tuple[int, ...]) -> Iterator[Finding]:
    """Yield a warning for a Python version that needs too much memory."""
    if BAD_PYTHONS[0] <= version <= BAD_PYTHONS[1]:
        yield Finding(
            f"Python {'.'.join(map(str, version))} may need up to five times the memory (cpython #148726). "
            "Use 3.14.5 or newer."
        )


def on_tls(cert: str | None, key: str | None) -> Iterator[Finding]:
    """Yield an error if the certificate and the key cannot be loaded, or do not belong together.

    A key with a passphrase is an error, because nobody could type the passphrase when the server starts.
    """
    if not cert:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: "")
    except ssl.SSLError as error:
        cause = "they are not a certificate and its key in PEM format"
        if error.reason == "KEY_VALUES_MISMATCH":
            cause = "the key is not the certificate's"
        elif "ENCRYPTED" in Path(key or cert).read_text(errors="replace"):
            cause = "the key has a passphrase"
        yield Finding(f"TLS_CERT {cert} and TLS_KEY {key or cert} cannot be used: {cause}.", WORKER_BOOT_ERROR)
    except OSError as error:
        missing = next((name for name in (cert, key or cert) if not os.access(name, os.R_OK)), cert)
        yield Finding(f"TLS: {missing} cannot be read: {error.strerror}.", WORKER_BOOT_ERROR)


def on_websockets(config: uvicorn.Config) -> Iterator[Finding]:
    """Yield an error if the app has a WebSocket route and no library for WebSockets is installed."""
    if config.ws_protocol_class is None and (path := _websocket_path(config.app)):
        yield Finding(
            f"the app has a WebSocket route {path}, but no WebSocket library is installed, so it would respond with "
            "404. Install websockets.",
            ERROR,
        )


def _websocket_path(app: Any) -> str | None:
    """Return the path of a WebSocket route of a Starlette or FastAPI app, also behind middleware, or None."""
    while app is not None and not getattr(app, "routes", None):
        app = getattr(app, "app", None)
    if app is None:
        return None
    from starlette.routing import WebSocketRoute

    for route in app.routes:
        if isinstance(route, WebSocketRoute):
            return route.path
        if (found := _websocket_path(route)) is not None:
            return f"{getattr(route, 'path', '')}{found}"
    return None


def on_run_dir(path: Path) -> Iterator[Finding]:
    """Yield an error if the run directory cannot be used or made.

    It is not made here, because it could collide with a primary that is just removing it.
    """
    if path.exists():
        try:
            RunDir(path).prepare()
        except RunDirError as error:
            yield Finding(str(error), ERROR)
            return
        if not os.access(path, os.W_OK | os.X_OK):
            yield Finding(f"RUN_DIR {path} is not writable. Set RUN_DIR to another folder.", ERROR)
        return
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        yield Finding(
            f"RUN_DIR {path} cannot be created: {parent} is not a writable folder. Set RUN_DIR to another folder.",
            ERROR,
        )


def on_binds(binds: tuple[str, ...], primary: int | None) -> Iterator[Finding]:
    """Yield an error for each address that cannot be bound. All are bound at the same time, and then closed.

    Args:
        binds: The addresses.
        primary: The pid of a running primary. An address on which it listens is not tried.
    """
    with ExitStack() as opened:
        for bind in binds:
            try:
                if bind.startswith("fd://"):
                    yield from _on_descriptor(bind)
                    continue
                if primary is not None and listens(primary, bind):
                    text = f"{bind} was not tried, because the running primary {primary} listens on it."
                    yield Finding(text, kind="note")
                    continue
                opened.callback(listeners.close, listeners.open_listener(bind))
            except BindError as error:
                yield Finding(str(error), USAGE if isinstance(error, BindUsageError) else ERROR)


def _on_descriptor(bind: str) -> Iterator[Finding]:
    """Yield a warning if a file descriptor is not a listening socket. The process that starts `serve` provides it.

    The socket is not modified, also if it will be the server's own.
    """
    fd, _ = listeners.parse_inherited(bind)
    try:
        with socket.socket(fileno=os.dup(fd)) as inherited:
            if inherited.type == socket.SOCK_STREAM and inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return
    except (OSError, OverflowError):
        pass
    yield Finding(
        f"{bind} is not a listening stream socket in this process. The process that starts `serve` must pass one to it."
    )


async def on_redis(settings: StateSettings, rights: bool, production: bool) -> list[Finding]:
    """Return an error if Redis does not respond, and in production warnings about its configuration.

    Args:
        settings: The settings of the state.
        rights: Whether to try the commands of each feature, too. `serve` does not try them, because routes that need no
            session can be served while Redis is full.
        production: Whether the configuration matters. The Redis of `dev` keeps nothing, and is not meant to.
    """
    from everycore.cli.redis_advice import check_server
    from everycore.cli.redis_rights import rehearse
    from everycore.state.client.connect import connect, connection_error
    from everycore.state.client.url import parse

    if reason := await connection_error(settings.redis_url, settings.redis_timeout):
        shown = parse(settings.redis_url).shown
        return [Finding(f"Redis does not respond at REDIS_URL ({shown}): {reason}", ERROR)]
    async with connect(settings.redis_url, settings.redis_timeout, settings.key_prefix) as redis:
        refusals = await rehearse(redis) if rights else []
        found = [Finding(each.text, ERROR if each.needed else 0) for each in refusals]
        return found + [Finding(each) for each in (await check_server(redis) if production else [])]
