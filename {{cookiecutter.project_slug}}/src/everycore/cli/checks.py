"""What `check` finds: all that serving needs is tried, and nothing of a running primary is disturbed."""

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

from everycore import manifest
from everycore.environ import SettingsError
from everycore.server import listeners, proxies
from everycore.server.address_owner import listens
from everycore.server.listeners import BindError, BindUsageError
from everycore.server.loading import LoadError, find_app, preload
from everycore.server.primary import WORKER_BOOT_ERROR
from everycore.server.run_dir import RunDir, RunDirError
from everycore.server.settings import ServerSettings
from everycore.state.settings import StateSettings

ERROR, USAGE = 1, 2
# The incremental collector of these lets memory grow up to fivefold (cpython #148726); 3.14.5 went back.
BAD_PYTHONS = ((3, 14, 0), (3, 14, 4))


@dataclass(frozen=True)
class Finding:
    """code: what `check` exits with; 0 for what does not keep `serve` from starting."""

    text: str
    code: int = 0
    kind: str = "warning"

    def __str__(self) -> str:
        return f"{'error' if self.code else self.kind}: {self.text}"


def find(target: str, settings: ServerSettings, run_dir: Path, own: bool) -> Iterator[Finding]:
    """Yield every finding, one after the other.

    Args:
        target: The app, as "module:attribute".
        settings: The server's.
        run_dir: Where a running primary would be found.
        own: The app is the project's own, and needs its Redis.
    """
    yield Finding(manifest.describe(), kind="note")
    yield from on_python(sys.version_info[:3])
    yield from on_tls(settings.tls_cert, settings.tls_key)
    without_tls = {name: value for name, value in settings.uvicorn_options().items() if not name.startswith("ssl_")}
    try:
        yield from on_websockets(preload(target, **without_tls))
    except SettingsError as error:
        yield from (Finding(fault, USAGE) for fault in error.args)
        own = False  # there is nothing to ask Redis with
    except LoadError as error:
        yield Finding(str(error), WORKER_BOOT_ERROR)
    yield from map(Finding, proxies.check_trusted(settings.forwarded_allow_ips))
    primary = RunDir(run_dir).owner()
    if primary is None:
        yield from on_run_dir(run_dir)
    yield from on_binds(settings.bind, primary)
    if own:
        try:
            yield from asyncio.run(on_redis(StateSettings.for_app(target), rights=True))
        except SettingsError as error:
            yield from (Finding(fault, USAGE) for fault in error.args)


def settings_alone(target: str, error: SettingsError) -> Iterator[Finding]:
    """Yield the faults of the server's settings, and those that the app finds in its own: all are told at once."""
    yield from (Finding(fault, USAGE) for fault in error.args)
    try:
        find_app(target)
    except SettingsError as own:
        yield from (Finding(fault, USAGE) for fault in own.args)
    except LoadError as failure:
        yield Finding(str(failure), WORKER_BOOT_ERROR)


def on_python(version: tuple[int, ...]) -> Iterator[Finding]:
    if BAD_PYTHONS[0] <= version <= BAD_PYTHONS[1]:
        yield Finding(
            f"Python {'.'.join(map(str, version))} may need up to five times the memory (cpython #148726). "
            "Take 3.14.5 or newer."
        )


def on_tls(cert: str | None, key: str | None) -> Iterator[Finding]:
    """Whether they load and belong together. Never asks for a passphrase: a server has nobody who types it."""
    if not cert:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: "")
    except ssl.SSLError as error:
        said = "they are not a certificate and its key in PEM format"
        if error.reason == "KEY_VALUES_MISMATCH":
            said = "the key is not the certificate's"
        elif "ENCRYPTED" in Path(key or cert).read_text(errors="replace"):
            said = "the key has a passphrase"
        yield Finding(f"TLS_CERT {cert} and TLS_KEY {key or cert} cannot be used: {said}.", WORKER_BOOT_ERROR)
    except OSError as error:
        missing = next((name for name in (cert, key or cert) if not os.access(name, os.R_OK)), cert)
        yield Finding(f"TLS: {missing} cannot be read: {error.strerror}.", WORKER_BOOT_ERROR)


def on_websockets(config: Any) -> Iterator[Finding]:
    if config.ws_protocol_class is None and (path := _websocket_path(config.app)):
        yield Finding(
            f"the app has a WebSocket at {path}, and no library for it: it would be 404. Install websockets.", ERROR
        )


def _websocket_path(app: Any) -> str | None:
    """The path of a route that is a WebSocket's, in an app of Starlette's or FastAPI's, also behind middleware."""
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
    """Without making it: it would be in the way of a primary that is just leaving."""
    if path.exists():
        try:
            RunDir(path).prepare()
        except RunDirError as error:
            yield Finding(str(error), ERROR)
            return
        if not os.access(path, os.W_OK | os.X_OK):
            yield Finding(f"RUN_DIR {path} cannot be written to. Set RUN_DIR elsewhere.", ERROR)
        return
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        yield Finding(f"RUN_DIR {path} cannot be made in {parent}. Set RUN_DIR elsewhere.", ERROR)


def on_binds(binds: tuple[str, ...], primary: int | None) -> Iterator[Finding]:
    """Each is bound, all at once, and closed. primary: one that runs and may have them already."""
    with ExitStack() as opened:
        for bind in binds:
            try:
                if bind.startswith("fd://") and bind.removeprefix("fd://").isdecimal():
                    yield from _on_descriptor(bind)
                    continue
                if primary is not None and listens(primary, bind):
                    yield Finding(f"{bind} is served by the running primary {primary} and was not tried.", kind="note")
                    continue
                opened.callback(listeners.close, listeners.open_listener(bind))
            except BindError as error:
                yield Finding(str(error), USAGE if isinstance(error, BindUsageError) else ERROR)


def _on_descriptor(bind: str) -> Iterator[Finding]:
    """Only looked at: it is somebody else's, who need not have it ready for `check`."""
    try:
        with socket.socket(fileno=os.dup(int(bind.removeprefix("fd://")))) as borrowed:
            if borrowed.type == socket.SOCK_STREAM and borrowed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                return
    except (OSError, OverflowError):
        pass
    yield Finding(f"{bind} is no listening stream socket in this process. Whoever starts `serve` must hand one over.")


async def on_redis(settings: StateSettings, rights: bool) -> list[Finding]:
    """Whether it answers, and advice in production: the Redis of `dev` keeps nothing, and is not meant to.

    rights: ask for them too. `serve` does not: what needs no session is served by a Redis that is full, too.
    """
    from everycore.cli.redis_advice import check_server
    from everycore.cli.redis_rights import rehearse
    from everycore.state.client.connect import connect, connection_error
    from everycore.state.client.url import parse

    if reason := await connection_error(settings.redis_url, settings.redis_timeout):
        shown = parse(settings.redis_url).shown
        return [Finding(f"Redis does not answer at REDIS_URL ({shown}): {reason}", ERROR)]
    async with connect(settings.redis_url, settings.redis_timeout, settings.key_prefix) as redis:
        refusals = await rehearse(redis) if rights else []
        found = [Finding(each.text, ERROR if each.needed else 0) for each in refusals]
        return found + [Finding(each) for each in (await check_server(redis) if settings.production else [])]
