"""Imports the app and the parts of uvicorn that serve it."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from everycore.environ import SettingsError
from everycore.server.http import HttpConfig
from everycore.server.import_errors import LoadError, summarize


def load(target: str, wrapper: str = "", **options: Any) -> HttpConfig:
    """Import the app and the parts of uvicorn that serve it.

    Args:
        target: "module:attribute" of an ASGI app, or of a factory that takes no arguments.
        wrapper: "module:attribute" of ASGI middleware that is put around the app.
        options: Options of HttpConfig.

    Raises:
        LoadError: The app or its TLS certificate cannot be loaded.
        SettingsError: The app refuses one of its settings.
    """
    config = HttpConfig(find_app(target), **options)
    try:
        config.load()
    except OSError as error:  # the base class of ssl.SSLError
        authority = options.get("ssl_ca_certs")
        key = f", its key or {authority}" if authority else " and its key"
        raise LoadError(f"TLS: {options.get('ssl_certfile')}{key} cannot be used: {error}.") from None
    if wrapper:
        config.loaded_app = find_app(wrapper)(config.loaded_app)
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
    except SettingsError:
        raise
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):
            raise LoadError(f"app {target!r}: there is no module {missing!r} in {os.getcwd()}.") from None
        raise LoadError(f"app {target!r} does not import: {summarize(error, module_name)}", error) from None
    gevent = sys.modules.get("gevent.monkey")
    if gevent and gevent.is_module_patched("threading"):
        raise LoadError(
            f"app {target!r} imports gevent and patches Python's threads, so an event loop of asyncio cannot run. "
            "Remove monkey.patch_all(), or run this app under gunicorn with gevent workers."
        )
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
