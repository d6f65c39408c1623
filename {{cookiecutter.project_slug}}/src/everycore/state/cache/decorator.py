"""A function whose results are cached: what it returns for the same arguments is computed once for all workers."""

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
    """Cache what an async function returns; the result takes the worker's cache as an argument before its own.

        @cached(ttl=60, stale=300, tags=("users",))
        async def top_users(limit: int) -> list[str]: ...

        await top_users(request.state.cache, limit=10)

    ttl, stale and tags as in `Cache.get_or_compute`. key: what makes the key of the arguments; without it the key is
    the function's module and name with the arguments' JSON, so a function that takes what is no JSON, as a connection
    or a request, has to say what its result depends on: TypeError otherwise. What is returned must be JSON itself.
    Raises TypeError for a function that is not async.
    """

    def decorate(function: Callable[P, Awaitable[R]]) -> Callable[Concatenate[Cache, P], Coroutine[Any, Any, R]]:
        name = f"{function.__module__}.{function.__qualname__}"
        if not inspect.iscoroutinefunction(function):
            raise TypeError(f"only an async function can be cached, and {name} is none")

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
        raise TypeError(f"no key can be made of the arguments of {name} ({error}): give cached(key=...)") from error
