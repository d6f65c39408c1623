"""Imports the app once, before the fork, so that all workers share its memory."""

import gc
import importlib
import inspect
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn

from everycore.environ import SettingsError
from everycore.server.http import CoalescingHttpProtocol
from everycore.server.import_errors import format_traceback, summarize
from everycore.server.logging import AccessLog
from everycore.server.proxies import LOCAL, add_proxy_middleware

logger = logging.getLogger(__name__)


class LoadError(Exception):
    """The app cannot be loaded. The message says why in one line; `traceback` is empty if the app raised nothing."""

    def __init__(self, message: str, cause: BaseException | None = None) -> None:
        super().__init__(message)
        self.traceback = format_traceback(cause) if cause else ""


def preload(
    target: str,
    access_log: bool = False,
    forwarded_allow_ips: Sequence[str] = LOCAL,
    root_path: str = "",
    **options: Any,
) -> uvicorn.Config:
    """Import the app and the parts of uvicorn that serve it.

    Args:
        target: "module:attribute" of an ASGI app, or of a factory that takes no arguments.
        access_log: Whether to write a log line for each request.
        forwarded_allow_ips: Trusted proxies, see `ProxyHeaders`.
        root_path: Path under which a proxy serves the app, see `RootPath`.
        options: More options of uvicorn.Config.

    Raises:
        LoadError: The app or its TLS certificate cannot be loaded.
        SettingsError: The app refuses one of its settings.
    """
    config = uvicorn.Config(
        find_app(target),
        loop="uvloop",
        http=CoalescingHttpProtocol,
        log_config=None,
        server_header=False,
        access_log=False,  # AccessLog is cheaper and has the milliseconds
        proxy_headers=False,  # ProxyHeaders is stricter
        workers=1,  # otherwise uvicorn reads WEB_CONCURRENCY, and fails at "auto"
        **options,
    )
    try:
        config.load()
    except OSError as error:  # the base class of ssl.SSLError
        raise LoadError(f"TLS: {options.get('ssl_certfile')} and its key cannot be used: {error}.") from None
    if access_log:
        config.loaded_app = AccessLog(config.loaded_app)
    config.loaded_app = add_proxy_middleware(config.loaded_app, forwarded_allow_ips, root_path)
    if threading.active_count() > 1:
        names = ", ".join(thread.name for thread in threading.enumerate()[1:])
        logger.warning("import of %s started threads (%s); threads do not survive the fork into workers", target, names)
    # The garbage collector ignores frozen objects. So it never writes to, and never copies, memory that workers share.
    gc.collect()
    gc.freeze()
    return config


def find_app(target: str) -> Callable[..., Any]:
    """Import the ASGI app that "module:attribute" names, and call it first if it is a factory.

    Raises:
        LoadError: The module cannot be imported, or the attribute is not an app.
        SettingsError: The app refuses one of its settings.
    """
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        raise LoadError(f"app {target!r} is not of the form module:attribute, such as main:app.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):
            raise LoadError(f"app {target!r}: there is no module {missing!r} in {os.getcwd()}.") from None
        raise LoadError(f"app {target!r} does not import: {summarize(error, module_name)}", error) from None
    try:
        for name in attribute.split("."):
            found = getattr(found, name)
    except AttributeError as error:
        raise LoadError(f"app {target!r}: {error}.") from None
    if _is_factory(found):
        try:
            found = found()
        except SettingsError:
            raise
        except (Exception, SystemExit) as error:
            raise LoadError(f"app factory {target!r} failed: {summarize(error, module_name)}", error) from None
    if not callable(found):
        raise LoadError(
            f"app {target!r} is neither an ASGI app nor a factory of one: its type is {type(found).__name__}."
        )
    app: Callable[..., Any] = found
    return app


def _is_factory(found: Any) -> bool:
    """Return whether `found` is a plain function or class that can be called without arguments."""
    if not callable(found) or inspect.iscoroutinefunction(found):
        return False
    try:
        inspect.signature(found).bind()
    except (TypeError, ValueError):  # ValueError: a builtin without a signature
        return False
    return True
