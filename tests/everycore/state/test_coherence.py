"""Tags, and what workers remember: many caches on one Redis, and never an older value than was promised."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from redis.asyncio import Redis

from everycore.state.cache import store as near_module
from everycore.state.cache.cache import Cache
from everycore.state.cache.entry import pack
from everycore.state.client.connect import connect

pytestmark = pytest.mark.anyio

NEAR = pytest.mark.one_server("nothing is kept near of a Redis Cluster")
DEADLINE = 30.0  # seconds, generous: only a test that fails waits so long


class Worker:
    """A cache, its client, and what the client hears in order."""

    def __init__(self, client: Any) -> None:
        self.client, self.cache = client, Cache(client)

    async def read(self, key: str, world: dict[str, int], tags: tuple[str, ...] = (), **options: Any) -> int:
        async def compute() -> int:
            seen = world[key]
            for _ in range(random.randrange(3)):
                await asyncio.sleep(0)  # others change the world meanwhile
            return seen

        async with asyncio.timeout(DEADLINE):
            return int(await self.cache.get_or_compute(key, compute, ttl=60, tags=tags, **options))

    async def caught_up(self) -> None:
        """What Redis pushed before now has been heard: its word comes before this answer."""
        await self.client.ping()


@pytest.fixture
async def workers(redis: Redis, redis_url: str, plain: Any) -> AsyncIterator[Callable[..., list[Worker]]]:
    async with AsyncExitStack() as stack:

        def make(count: int, pipelined: bool = True) -> list[Worker]:
            made = [Worker(connect(redis_url, 5.0) if pipelined else plain()) for _ in range(count)]
            for worker in made:
                stack.push_async_callback(worker.client.aclose)
                stack.push_async_callback(worker.cache.aclose)
            return made

        yield make


@pytest.mark.parametrize("pipelined", [pytest.param(True, id="near", marks=NEAR), pytest.param(False, id="plain")])
@pytest.mark.parametrize("end", ["invalidate", "forget"])
async def test_value_invalidated_elsewhere_serves_earlier_callers(workers: Any, pipelined: bool, end: str) -> None:
    one, other = workers(2, pipelined=pipelined)
    computing, gate = asyncio.Event(), asyncio.Event()

    async def old() -> str:
        computing.set()
        await gate.wait()
        return "old"

    async def new() -> str:
        return "new"

    asked = asyncio.create_task(one.cache.get_or_compute("k", old, ttl=60, tags=("t",)))
    await computing.wait()
    await (other.cache.invalidate("t") if end == "invalidate" else other.cache.forget("k"))
    await one.caught_up()
    after = asyncio.create_task(one.cache.get_or_compute("k", new, ttl=60, tags=("t",)))
    gate.set()
    assert await asked == "old"  # it asked before
    if pipelined:  # a plain client hears nothing, and waits with those who asked before
        assert await after == "new"
    await after
    assert await other.cache.get_or_compute("k", new, ttl=60, tags=("t",)) == "new"


async def test_invalidate_ends_all_values_of_the_tag_only(workers: Any, redis: Redis) -> None:
    both, world = workers(2), dict.fromkeys("abc", 1)
    tags = {"a": ("x", "y"), "b": ("y",), "c": ()}
    for worker in both:
        assert [await worker.read(key, world, tags[key]) for key in "abc"] == [1, 1, 1]
    world.update(dict.fromkeys("abc", 2))
    await redis.config_resetstat()
    await both[0].cache.invalidate("x")
    await both[1].caught_up()
    for worker in reversed(both):
        assert [await worker.read(key, world, tags[key]) for key in "abc"] == [2, 1, 1]
    await both[1].cache.invalidate("y")
    await both[0].caught_up()
    for worker in both:
        assert [await worker.read(key, world, tags[key]) for key in "abc"] == [2, 2, 1]


async def test_lost_generation_revives_no_value(workers: Any, redis: Redis) -> None:
    one, other = workers(2)
    world = {"k": 1}
    await one.read("k", world, ("t",))
    kept: Any = await redis.get("cache:{k}")
    for value in (2, 3, 4):
        world["k"] = value
        await one.cache.invalidate("t")
        await redis.delete("cache:tag:t")  # evicted
        await redis.set("cache:{k}", kept, px=60_000)  # and the value was not
        await other.caught_up()
        assert await other.read("k", world, ("t",)) == value


async def test_other_tags_do_not_find_the_value(workers: Any) -> None:
    (worker,) = workers(1)
    world = {"k": 1}
    for value, tags in ((1, ("a",)), (2, ("a", "b")), (3, ()), (4, ("b",))):
        world["k"] = value
        assert await worker.read("k", world, tags) == value


@NEAR
async def test_near_hit_sends_no_command(workers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_module, "MAX_STALENESS", 3600.0)
    (worker,) = workers(1)
    world = {"k": 1}
    for _ in range(2):  # computed; read, and kept
        await worker.read("k", world, ("t",))
    sent = worker.client.stats.commands
    for _ in range(100):
        await worker.read("k", world, ("t",))
    assert worker.client.stats.commands == sent
    stats = worker.cache.stats
    assert (stats.near_hits, stats.redis_hits, stats.misses, stats.computes, stats.entries) == (100, 1, 1, 1, 2)


@NEAR
async def test_silent_connection_is_trusted_for_one_second(
    workers: Any, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(near_module, "MAX_STALENESS", 0.2)
    one, other = workers(2)
    world = {"k": 1}
    for _ in range(2):
        await one.read("k", world)
    one.cache._store.near.invalidated = lambda keys: None  # what Redis says does not arrive
    world["k"] = 2
    await other.cache.forget("k")
    async with asyncio.timeout(DEADLINE):
        while await one.read("k", world) == 1:
            await redis.ping()


@NEAR
async def test_lost_connection_and_flush_drop_old_values(workers: Any, redis: Redis) -> None:
    one, other = workers(2)
    world = {"k": 1}
    for value in range(2, 12):
        for _ in range(2):
            await one.read("k", world, ("t",))
        world["k"] = value
        if value % 2:
            await redis.flushall()
        else:
            await redis.client_kill_filter(_id=await one.client.client_id())
            await other.cache.invalidate("t")
        async with asyncio.timeout(DEADLINE):
            while one.cache.stats.entries or not one.client.stats.connected:  # until it has heard
                await asyncio.gather(one.client.ping(), return_exceptions=True)
        assert await one.read("k", world, ("t",)) == value


@NEAR
async def test_near_values_after_write_storm_match_redis(workers: Any, redis: Redis) -> None:
    readers = workers(3)
    keys = [f"k{number}" for number in range(5)]

    async def write(client: Any, turn: int) -> None:
        for number in range(20):
            key, written = random.choice(keys), pack(f'"{turn}-{number}-{id(client)}"', "t", 0.0, {}, 0.0)
            await (
                client.delete(f"cache:{{{key}}}")
                if number % 7 == 0
                else client.set(f"cache:{{{key}}}", written, px=60_000)
            )

    async def read(worker: Worker) -> None:
        for _ in range(20):
            await asyncio.gather(*(worker.cache._store.load(key, ()) for key in random.choices(keys, k=3)))

    kept = 0
    for turn in range(30):
        writers: list[Awaitable[None]] = [write(redis, turn), write(readers[0].client, turn)]
        await asyncio.gather(*writers, *(read(worker) for worker in readers[1:]))
        for worker in readers[1:]:  # its own client's writes, unlike the cache's, are not heard by the first
            await worker.caught_up()
            for key in keys:
                entry = worker.cache._store.near._items.get(f"cache:{{{key}}}", (None,))[0]
                if entry is not None:
                    kept += 1
                    raw: Any = await redis.get(f"cache:{{{key}}}")
                    assert raw is not None
                    assert raw.decode().partition("\n")[2] == entry.payload
    assert kept > 30  # it was not empty all the time


@pytest.mark.one_server("only a client that is told of it joins nothing that others have ended")
@pytest.mark.parametrize("seed", range(6))
async def test_reads_never_return_less_than_promised(workers: Any, seed: int) -> None:
    """The world's versions only grow; `floors` are those below which a worker has been promised to see nothing."""
    dice = random.Random(seed)
    three, keys = workers(3), ["a", "b", "c"]
    tags: dict[str, tuple[str, ...]] = {"a": ("x",), "b": ("x", "y"), "c": ()}
    world = dict.fromkeys(keys, 0)
    floors = [dict.fromkeys(keys, 0) for _ in three]

    async def act(number: int) -> None:
        worker, floor = three[number], floors[number]
        for _ in range(60):
            match dice.randrange(8):
                case 0:
                    tag = dice.choice("xy")
                    touched = [key for key in keys if tag in tags[key]]
                    now = {key: world[key] + 1 for key in touched}
                    world.update(now)
                    await worker.cache.invalidate(tag)
                    floor.update({key: max(floor[key], now[key]) for key in touched})
                case 1:
                    world["c"] += 1
                    version = world["c"]
                    await worker.cache.forget("c")
                    floor["c"] = max(floor["c"], version)
                case 2:  # what others were told before this ping, is so here
                    promised = [dict(other) for other in floors]
                    await worker.caught_up()
                    floor.update({key: max(each[key] for each in [floor, *promised]) for key in keys})
                case _:
                    key = dice.choice(keys)
                    at_least = floor[key]
                    assert at_least <= await worker.read(key, world, tags[key]) <= world[key]

    await asyncio.gather(*(act(number) for number in range(3) for _ in range(4)))
    for worker in three:
        await worker.caught_up()
    for key in keys:
        assert {await worker.read(key, world, tags[key]) for worker in three for _ in range(2)} == {world[key]}
