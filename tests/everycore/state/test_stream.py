"""A stream against a list: read on from any id, by many readers, through outages, and no event twice or never."""

import asyncio
import random
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from redis.exceptions import RedisError

from everycore.state.client.connect import connect
from everycore.state.stream import START, Stream
from test_leader import until
from test_session import values

pytestmark = pytest.mark.anyio

DEADLINE = 20.0  # seconds; only a test that fails waits so long


async def taken(stream: Stream, count: int, after: str = START) -> list[Any]:
    async with asyncio.timeout(DEADLINE), aclosing(stream.read(after)) as events:  # type: ignore[type-var]
        return [await anext(events) for _ in range(count)]


async def test_stream_is_read_on_from_each_id(redis: Redis) -> None:
    stream = Stream(redis, "news")
    ids = [await stream.append({"n": n}) for n in range(250)]  # more than one batch
    assert [event.id for event in await taken(stream, 250)] == ids
    for position in (0, 99, 100, 248):
        events = await taken(stream, 249 - position, ids[position])
        assert [event.value for event in events] == [{"n": n} for n in range(position + 1, 250)]
    assert await stream.last_id() == ids[-1]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.just("append"), st.integers(0, 1), values)
        | st.tuples(st.just("read"), st.integers(0, 1), st.integers(0, 120))
        | st.tuples(st.just("many"), st.integers(0, 1), st.integers(0, 120)),
        max_size=12,
    )
)
async def test_stream_equals_a_list(redis: Redis, redis_url: str, steps: list[Any]) -> None:
    """Two workers append and read on, from any position, in batches that are cut anywhere."""
    await redis.delete("stream:news")
    async with connect(redis_url, 5.0) as client:
        workers, model, ids = (Stream(redis, "news"), Stream(client, "news")), list[Any](), [START]
        for step, worker, value in steps:
            stream = workers[worker]
            if step == "read":
                position = value % len(ids)
                events = await taken(stream, len(model) - position, ids[position])
                assert [event.value for event in events] == model[position:]
                assert [event.id for event in events] == ids[position + 1 :]
                assert await stream.last_id() == ids[-1]
            else:
                for each in [value] if step == "append" else range(value):
                    model.append(each)
                    ids.append(await stream.append(each))


async def test_stream_readers_get_each_event_once_in_order(redis: Redis, redis_url: str) -> None:
    """Readers in two workers, who leave at random and come back with their last id."""
    count = 200
    async with connect(redis_url, 5.0) as client:
        here, there = Stream(redis, "news"), Stream(client, "news")
        got: list[list[int]] = [[] for _ in range(8)]

        async def read(number: int) -> None:
            last = START
            while len(got[number]) < count:
                async with aclosing((here, there)[number % 2].read(last)) as events:  # type: ignore[type-var]
                    for _ in range(random.randrange(1, 40)):
                        if len(got[number]) == count:
                            break
                        event = await anext(events)
                        got[number].append(event.value)
                        last = event.id

        async def write() -> None:
            for n in range(count):
                await (here, there)[n % 2].append(n)
                await asyncio.sleep(random.choice((0, 0, 0.002)))

        async with asyncio.timeout(DEADLINE):
            await asyncio.gather(write(), *map(read, range(8)))
    assert got == [list(range(count))] * 8


@pytest.mark.one_server("counts the connections of one server")
async def test_stream_readers_of_a_worker_share_a_connection(redis: Any) -> None:
    stream, before = Stream(redis, "news"), len(await redis.client_list())
    readers = [asyncio.create_task(taken(stream, 1)) for _ in range(60)]  # more than the pool has
    async with asyncio.timeout(DEADLINE):
        while True:
            if (await redis.info("clients"))["blocked_clients"] == 1:
                break
            await asyncio.sleep(0.01)
    assert len(await redis.client_list()) <= before + 1
    await stream.append("hello")
    assert [events[0].value for events in await asyncio.gather(*readers)] == ["hello"] * 60


async def test_stream_keeps_about_its_length(redis: Redis) -> None:
    stream = Stream(redis, "news", length=10)
    for n in range(500):
        await stream.append(n)
    assert 10 <= await redis.xlen("stream:news") < 250
    (event,) = await taken(stream, 1)
    assert event.value > 200  # the oldest that is kept
    with pytest.raises(ValueError, match="must be 1 or more"):
        Stream(redis, "news", length=0)


async def test_stream_from_its_end_yields_only_what_is_new(redis: Redis) -> None:
    stream = Stream(redis, "news")
    await stream.append("old")
    reader = asyncio.create_task(taken(stream, 1, await stream.last_id()))
    await asyncio.sleep(0.05)
    await stream.append("new")
    assert [event.value for event in await reader] == ["new"]


@pytest.mark.parametrize("id", ["", "$", "-", "1", "1-", "x-1", "1-1-1", "1" * 30 + "-1", "²-0"])
async def test_stream_invalid_id_is_refused(redis: Redis, id: str) -> None:
    with pytest.raises(ValueError, match="not the id of an event"):
        await taken(Stream(redis, "news"), 1, id)


async def test_stream_in_an_outage_raises_and_is_read_on(redis_start: Any, short_path: Path) -> None:
    server = redis_start("own", "--appendonly", "yes", "--appendfsync", "always")
    client: Any = connect(f"unix://{short_path}/own/redis.sock", 1.0)
    stream = Stream(client, "news")
    id = await stream.append(1)
    reader = asyncio.create_task(taken(stream, 1, id))
    await asyncio.sleep(0.05)
    server.kill()
    server.wait()
    with pytest.raises(RedisError):
        await reader
    redis_start("own", "--appendonly", "yes")
    await until(lambda: client.stats.connected)
    await stream.append(2)
    assert [event.value for event in await taken(stream, 1, id)] == [2]
    await client.aclose()
