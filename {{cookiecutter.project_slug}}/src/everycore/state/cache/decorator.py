"""Caches the results of a function, computed once for all workers."""

import functools
import inspect
import json
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar

from everycore.state.cache.cache import Cache

P = ParamSpec("P")
R = TypeVar("R")


def cached(
    ttl: float, stale: float = 0.0, tags: tuple[str, ...] = (), key: Callable[..., str] | None = None
) -> Callable[[Callable[P, Awaitable[R]]], Callable[Concatenate[Cache, P], Coroutine[Any, Any, R]]]:
    """Return a decorator that caches the result of an async function.

        @cached(ttl=60, stale=300, tags=("users",))
        async def top_users(limit: int) -> list[str]: ...

        await top_users(request.state.cache, limit=10)

    Args:
        ttl: Seconds the result is fresh.
        stale: Further seconds in which it is returned while one worker recomputes it.
        tags: Names for `Cache.invalidate`.
        key: Returns the key for the arguments. By default the key is the function's module and name and the JSON of the
            arguments; a function with other arguments, such as a connection, needs its own.

    Returns:
        A decorator. The decorated function takes the worker's `Cache` as its first argument, and raises TypeError if
        its arguments are not JSON-serializable and there is no `key`. See `Cache.get_or_compute` for its result.

    Raises:
        TypeError: The function is not async.
    """

    def decorate(function: Callable[P, Awaitable[R]]) -> Callable[Concatenate[Cache, P], Coroutine[Any, Any, R]]:
        name = f"{function.__module__}.{function.__qualname__}"
        if not inspect.iscoroutinefunction(function):
            raise TypeError(f"only an async function can be cached, and {name} is not async")

        @functools.wraps(function)
        async def from_cache(cache: Cache, /, *args: P.args, **kwargs: P.kwargs) -> R:
            full = key(*args, **kwargs) if key is not None else _key(name, args, kwargs)
            value: R = await cache.get_or_compute(full, lambda: function(*args, **kwargs), ttl, stale=stale, tags=tags)
            return value

        return from_cache

    return decorate


def _key(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    try:
        return f"{name}:{json.dumps([args, kwargs], sort_keys=True, separators=(',', ':'))}"
    except (TypeError, ValueError) as error:
        raise TypeError(f"cannot make a key from the arguments of {name} ({error}); use cached(key=...)") from error
