"""Every worker hears it, over two clients of a real Redis; who was cut off is told that something is missing."""

import asyncio
import os
import secrets
import signal
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from everycore.state import broadcast as broadcast_module
from everycore.state.broadcast import MAX_WAITING, MISSED, Broadcast, Messages
from everycore.state.client.connect import connect

pytestmark = pytest.mark.anyio

DEADLINE = 20.0  # seconds; only a test that fails waits so long


@pytest.fixture
def prefix() -> str:
    """One for each test: what another test sent may still be on its way through a Redis Cluster."""
    return f"broadcast-{secrets.token_hex(4)}:"


@pytest.fixture
async def here(redis: Redis, prefix: str) -> AsyncIterator[Broadcast]:
    made = Broadcast(redis, prefix)
    yield made
    await made.aclose()


@pytest.fixture
async def there(redis_url: str, prefix: str, anyio_backend: str) -> AsyncIterator[Broadcast]:
    client = connect(redis_url, 5.0)
    made = Broadcast(client, prefix)
    yield made
    await made.aclose()
    await client.aclose()


async def following(messages: Messages) -> object:
    async with asyncio.timeout(DEADLINE):
        return await anext(messages)


async def connections(redis: Redis) -> int:
    return len(await redis.client_list(_type="pubsub"))


async def test_send_value_not_json_is_refused(here: Broadcast) -> None:
    with pytest.raises(TypeError):
        await here.send("news", object())


async def test_lost_connection_reconnects_and_delivers_missed(here: Broadcast, there: Broadcast, redis: Redis) -> None:
    async with here.listen("news") as a, there.listen("news") as b:
        await redis.client_kill_filter(_type="pubsub")
        assert (await following(a), await following(b)) == (MISSED, MISSED)
        await here.send("news", 1)
        assert (await following(a), await following(b)) == (1, 1)


async def test_silent_server_is_replaced_and_found_again(own_redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcast_module, "PING_INTERVAL", 0.1)
    client = connect(own_redis_url, 0.3)
    broadcast = Broadcast(client)
    pid = int((await client.info("server"))["process_id"])
    try:
        async with broadcast.listen("news") as messages:
            lost = broadcast._pubsub
            os.kill(pid, signal.SIGSTOP)
            async with asyncio.timeout(DEADLINE):
                while broadcast._pubsub is lost:
                    await asyncio.sleep(0.01)
            os.kill(pid, signal.SIGCONT)
            assert await following(messages) is MISSED
            await broadcast.send("news", "back")
            assert await following(messages) == "back"
    finally:
        os.kill(pid, signal.SIGCONT)
        await broadcast.aclose()
        await client.aclose()


async def test_outage_is_waited_for_and_close_ends_the_wait() -> None:
    client = connect("unix:///nowhere/redis.sock", 0.3)
    broadcast = Broadcast(client)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5), broadcast.listen("news"):
            pass
    await broadcast.aclose()
    await client.aclose()


@pytest.mark.one_server("two channels have an order on one server only")
async def test_slow_listener_gets_missed(here: Broadcast) -> None:
    async with here.listen("news") as slow, here.listen("end") as end:
        for number in range(MAX_WAITING + 3):
            await here.send("news", number)
        await here.send("end", None)
        assert await following(end) is None
        assert [await following(slow) for _ in range(3)] == [MISSED, MAX_WAITING + 1, MAX_WAITING + 2]


async def test_foreign_message_not_json_is_ignored(here: Broadcast, redis: Redis, prefix: str) -> None:
    async with here.listen("news") as messages:
        await redis.publish(f"{prefix}news", b"\xff{")
        await here.send("news", "good")
        assert await following(messages) == "good"


async def test_message_reaches_every_listener_in_order(here: Broadcast, there: Broadcast) -> None:
    async with here.listen("news") as a, here.listen("news") as b, there.listen("news") as c, there.listen("x") as d:
        for number in range(50):
            await there.send("news", {"n": number})
        await here.send("x", [])
        for messages in (a, b, c):
            assert [await following(messages) for _ in range(50)] == [{"n": number} for number in range(50)]
        assert await following(d) == []


@pytest.mark.one_server("asks one server who is connected")
async def test_worker_has_one_connection_and_unsubscribes_last(here: Broadcast, redis: Redis, prefix: str) -> None:
    before = await connections(redis)
    async with here.listen("a"), here.listen("b") as messages:
        async with here.listen("a"), here.listen("b"):
            assert await connections(redis) == before + 1
        await here.send("b", 1)
        assert await following(messages) == 1
    async with here.listen("sync"):  # confirmed after what was sent before it
        numbers = dict(await redis.pubsub_numsub(*(f"{prefix}{name}" for name in ("a", "b", "sync"))))
    assert list(numbers.values()) == [0, 0, 1]


async def test_cancelled_listener_leaves_channel_intact(here: Broadcast, redis: Redis) -> None:
    async def enter() -> None:
        async with here.listen("news"):
            pass

    for turns in range(30):
        task = asyncio.create_task(enter())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task], timeout=DEADLINE)
        async with asyncio.timeout(DEADLINE), here.listen("news") as messages:
            await here.send("news", turns)
            assert await following(messages) == turns


async def test_broadcast_close_at_any_moment_ends_reader(redis: Redis) -> None:
    async def enter(broadcast: Broadcast) -> None:
        async with broadcast.listen("news"):
            pass

    for turns in range(40):
        broadcast = Broadcast(redis)
        task = asyncio.create_task(enter(broadcast))
        for _ in range(turns):
            await asyncio.sleep(0)
        async with asyncio.timeout(DEADLINE):
            await broadcast.aclose()
        task.cancel()
        await asyncio.wait([task], timeout=DEADLINE)
