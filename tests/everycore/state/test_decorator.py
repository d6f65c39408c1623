"""The decorator, from the side of who uses it."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from everycore.state.cache.cache import Cache
from everycore.state.cache.decorator import cached

pytestmark = pytest.mark.anyio

calls: list[Any] = []


@cached(ttl=60, tags=("users",))
async def top(limit: int, *, reverse: bool = False) -> list[int]:
    """The first ones."""
    calls.append(limit)
    return sorted(range(limit), reverse=reverse)


@cached(ttl=60, stale=60, key=lambda connection, limit: f"count:{limit}")
async def count(connection: object, limit: int) -> int:
    calls.append(limit)
    return limit


@pytest.fixture
async def cache(redis: Redis, plain: Callable[[], Redis]) -> AsyncIterator[Cache]:
    calls.clear()
    async with plain() as client:
        yield Cache(client)


async def test_cached_arguments_without_key_are_refused(cache: Cache) -> None:
    with pytest.raises(TypeError, match=r"the arguments of .*test_decorator\.top .*JSON.*use cached\(key=\.\.\.\)"):
        await top(cache, object())  # type: ignore[arg-type]
    assert calls == []


def test_cached_function_not_async_is_refused() -> None:
    with pytest.raises(TypeError, match="only an async function can be cached"):

        @cached(ttl=60)
        def plain() -> Any:
            return 1


async def test_same_arguments_are_computed_once(cache: Cache) -> None:
    for _ in range(3):
        assert await top(cache, 2) == [0, 1]
        assert await top(cache, 2, reverse=True) == [1, 0]
        assert await top(cache, limit=3) == [0, 1, 2]
    assert calls == [2, 2, 3]
    await cache.invalidate("users")
    assert await top(cache, 2) == [0, 1]
    assert calls == [2, 2, 3, 2]


async def test_own_key_decides_what_is_shared(cache: Cache) -> None:
    assert await count(cache, object(), 1) == await count(cache, object(), 1) == 1
    assert calls == [1]
    await cache.forget("count:1")
    assert await count(cache, object(), limit=1) == 1
    assert calls == [1, 1]


def test_cached_function_keeps_its_metadata() -> None:
    assert top.__name__ == "top"
    assert top.__doc__ == "The first ones."
