"""Imports the app once, before the fork, so that workers share it. Knows no process."""

import gc
import importlib
import inspect
import logging
import os
import sys
import threading
from collections.abc import Sequence
from typing import Any

import uvicorn

from everycore.environ import SettingsError
from everycore.server.http import CoalescingHttpProtocol
from everycore.server.import_errors import summary, whole
from everycore.server.logging import AccessLog
from everycore.server.proxies import LOCAL, behind_proxies

logger = logging.getLogger(__name__)


class LoadError(Exception):
    """The app cannot be loaded; the message says why, in one line. traceback: of the app's own error, if it had one."""

    def __init__(self, message: str, cause: BaseException | None = None) -> None:
        super().__init__(message)
        self.traceback = whole(cause) if cause else ""


def preload(
    target: str,
    access_log: bool = False,
    forwarded_allow_ips: Sequence[str] = LOCAL,
    root_path: str = "",
    **options: Any,
) -> uvicorn.Config:
    """Import `target` ("module:attribute", an ASGI app or a factory without arguments) and uvicorn's own parts.

    access_log: write a line for each request. forwarded_allow_ips, root_path: as proxies.py has them. `options` go to
    uvicorn.Config. Raises LoadError.
    """
    config = uvicorn.Config(
        find_app(target),
        loop="uvloop",
        http=CoalescingHttpProtocol,
        log_config=None,
        server_header=False,
        access_log=False,  # ours is cheaper and tells the milliseconds
        proxy_headers=False,  # ours are stricter
        workers=1,  # or uvicorn reads WEB_CONCURRENCY, and fails at "auto"
        **options,
    )
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is one
        raise LoadError(f"TLS: {options.get('ssl_certfile')} and its key cannot be used: {error}.") from None
    if access_log:
        config.loaded_app = AccessLog(config.loaded_app)
    config.loaded_app = behind_proxies(config.loaded_app, forwarded_allow_ips, root_path)
    if threading.active_count() > 1:
        names = ", ".join(thread.name for thread in threading.enumerate()[1:])
        logger.warning("importing %s started threads (%s): they do not survive the fork into workers", target, names)
    # Collected once and frozen: the collector never touches, and so never copies, what workers share.
    gc.collect()
    gc.freeze()
    return config


def find_app(target: str) -> Any:
    """Return the ASGI app that "module:attribute" names, made by its factory if it is one.

    Raises:
        LoadError: It cannot be imported, or is no app.
        SettingsError: The app refuses a setting.
    """
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        raise LoadError(f"app {target!r} is not of the form module:attribute, such as main:app.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise LoadError(f"app {target!r}: there is no module {error.name!r} in {os.getcwd()}.") from None
        raise LoadError(f"app {target!r} does not import: {summary(error, module_name)}", error) from None
    except (Exception, SystemExit) as error:
        raise LoadError(f"app {target!r} does not import: {summary(error, module_name)}", error) from None
    try:
        for name in attribute.split("."):
            found = getattr(found, name)
    except AttributeError as error:
        raise LoadError(f"app {target!r}: {error}.") from None
    return _built(found, target, module_name)


def _built(found: Any, target: str, module_name: str) -> Any:
    """Call a factory; return an app as it is."""
    if callable(found) and not inspect.iscoroutinefunction(found) and _takes_no_argument(found):
        try:
            found = found()
        except SettingsError:
            raise
        except (Exception, SystemExit) as error:
            raise LoadError(f"app factory {target!r} failed: {summary(error, module_name)}", error) from None
    if not callable(found):
        raise LoadError(
            f"app {target!r} is neither an ASGI app nor a factory of one: its type is {type(found).__name__}."
        )
    return found


def _takes_no_argument(found: Any) -> bool:
    try:
        inspect.signature(found).bind()
    except (TypeError, ValueError):  # ValueError: a builtin that tells none
        return False
    return True
