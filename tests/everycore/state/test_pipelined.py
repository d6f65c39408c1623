"""redis-py's API over one connection, on a real Redis: each caller its own answer, and one write for one tick."""

import asyncio
import random
from typing import Any

import pytest
from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import ConnectionError, DataError, ReadOnlyError, ResponseError

from everycore.state.client import manager
from everycore.state.client.connect import connect
from everycore.state.client.manager import QueueFullError
from everycore.state.client.pipelined import PipelinedRedis

pytestmark = [pytest.mark.anyio, pytest.mark.one_server("is about the pipelined connection")]


@pytest.fixture
def ordinary(redis_url: str) -> Redis:
    return Redis.from_pool(BlockingConnectionPool.from_url(redis_url))


async def test_commands_of_one_tick_leave_in_one_write(redis: Any) -> None:
    before = redis.stats
    answers = await asyncio.gather(*(redis.set(f"k{n}", n) for n in range(250)))
    assert answers == [True] * 250
    after = redis.stats
    assert (after.commands - before.commands, after.writes - before.writes) == (250, 1)
    assert (after.waiting, after.connections, after.errors, after.connected) == (0, 1, 0, True)
    assert after.latency > 0


async def test_replies_of_all_sizes_reach_their_callers(redis: Any) -> None:
    chance = random.Random(1)

    async def caller(number: int) -> None:
        for turn in range(100):
            text = f"{number}:{turn}:" + "x" * chance.choice((0, 1, 100, 5_000, 70_000))
            if chance.random() < 0.3:
                await asyncio.sleep(0)
            assert await redis.echo(text) == text.encode()

    await asyncio.gather(*(caller(number) for number in range(80)))
    assert redis.stats.connections == 1


async def test_cancelled_callers_disturb_no_other(redis: Any) -> None:
    chance = random.Random(2)

    async def ask(number: int) -> None:
        assert await redis.echo(str(number)) == b"%d" % number

    async def wave(start: int) -> int:
        tasks = [asyncio.create_task(ask(number)) for number in range(start, start + 200)]
        doomed = chance.sample(tasks, 50)
        for turn, task in enumerate(doomed):
            if turn % 10 == 0:
                await asyncio.sleep(0)  # some are cancelled unsent, some on the wire, some answered
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert not [end for end in ends if end is not None and not isinstance(end, asyncio.CancelledError)]
        return sum(isinstance(end, asyncio.CancelledError) for end in ends)

    cancelled = [await wave(200 * number) for number in range(40)]
    assert sum(cancelled) > 500
    assert redis.stats.connections == 1


async def test_command_cancelled_in_its_tick_is_not_sent(redis: Any) -> None:
    await redis.set("n", 0)
    task = asyncio.create_task(redis.incr("n"))
    asyncio.get_running_loop().call_soon(task.cancel)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await redis.get("n") == b"0"


async def test_replies_have_the_shapes_of_redis_py(redis: Any, ordinary: Any) -> None:
    await redis.hset("hash", mapping={"a": 1, "b": "é"})
    await redis.zadd("zset", {"x": 1, "y": 2.5})
    await redis.xadd("stream", {"field": "value"}, id="1-1")
    await redis.geoadd("geo", (13.361389, 38.115556, "Palermo"))
    asked: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("hgetall", ("hash",), {}),
        ("zrange", ("zset", 0, -1), {"withscores": True}),
        ("zscore", ("zset", "y"), {}),
        ("xrange", ("stream",), {}),
        ("xread", ({"stream": "0"},), {}),
        ("scan", (0,), {"match": "hash"}),
        ("hscan", ("hash",), {}),
        ("config_get", ("maxmemory",), {}),
        ("geopos", ("geo", "Palermo"), {}),
        ("smembers", ("none",), {}),
        ("mget", (["none", "hash2"],), {}),
        ("dump", ("hash",), {}),
        ("object", ("encoding", "hash"), {}),
        ("expire", ("none", 10), {}),
        ("time", (), {}),
    ]
    async with ordinary:
        for name, args, options in asked[:-1]:
            assert await getattr(redis, name)(*args, **options) == await getattr(ordinary, name)(*args, **options), name
        assert type(await redis.time()) is type(await ordinary.time())
        assert (await redis.info("server"))["process_id"] == (await ordinary.info("server"))["process_id"]


async def test_arguments_are_encoded_as_redis_py_does(redis: Any) -> None:
    for value, stored in (
        (1, b"1"),
        (1.5, b"1.5"),
        ("é", "é".encode()),
        (b"\0\r\n", b"\0\r\n"),
        (10**30, b"1" + b"0" * 30),
    ):
        await redis.set("k", value)
        assert await redis.get("k") == stored
    for buffer in (bytearray(b"buffer"), memoryview(b"buffer")):
        await redis.set("k", buffer)
        assert await redis.get("k") == b"buffer"
    for nonsense in (True, None, object()):
        with pytest.raises(DataError, match="Convert to a bytes"):
            await redis.set("k", nonsense)
    assert await redis.execute_command("set", b"k", "lower") is True
    assert await redis.execute_command("GET", "k") == b"lower"


async def test_error_reaches_its_caller_alone(redis: Any) -> None:
    await redis.set("text", "x")
    wrong: Any
    right: Any
    wrong, right = await asyncio.gather(redis.incr("text"), redis.get("text"), return_exceptions=True)
    assert isinstance(wrong, ResponseError)
    assert right == b"x"
    redis.set_response_callback("ECHO", lambda answer: 1 / 0)
    broken: Any
    broken, right = await asyncio.gather(redis.echo("x"), redis.get("text"), return_exceptions=True)
    assert isinstance(broken, ZeroDivisionError)
    assert right == b"x"
    assert redis.stats.connections == 1


async def test_forgotten_script_is_loaded_again(redis: Any) -> None:
    script = redis.register_script("return redis.call('INCR', KEYS[1])")
    assert await script(keys=["n"]) == 1
    await redis.script_flush()
    assert sorted(await asyncio.gather(*(script(keys=["n"]) for _ in range(20)))) == list(range(2, 22))
    assert await redis.eval("return ARGV[1]", 0, "x") == b"x"
    assert redis.connection_pool.get_connection_count()[0][0] == 0  # all of it on the shared connection


async def test_blocking_command_delays_no_other(redis: Any) -> None:
    waiting = asyncio.create_task(redis.blpop(["list"], timeout=10))
    stream = asyncio.create_task(redis.xread({"stream": "$"}, block=10_000))
    async with asyncio.timeout(20):
        while (await redis.info("clients"))["blocked_clients"] < 2:
            assert not waiting.done()
    await redis.rpush("list", "value")
    await redis.xadd("stream", {"a": "b"}, id="1-1")
    assert await waiting == (b"list", b"value")
    assert await stream == [[b"stream", [(b"1-1", {b"a": b"b"})]]]


async def test_blocking_command_may_exceed_the_timeout(redis_url: str) -> None:
    async with connect(redis_url, 0.1) as impatient:
        assert await impatient.blpop(["nobody-pushes-here"], timeout=0.4) is None


async def test_pipelines_locks_and_subscriptions_work(redis: Any) -> None:
    for transaction in (True, False):
        async with redis.pipeline(transaction=transaction) as pipe:
            assert await pipe.set("k", 1).incr("k").get("k").execute() == [True, 2, b"2"]
    async with redis.lock("lock", timeout=5), redis.pubsub() as pubsub:
        assert await redis.lock("lock", timeout=5).locked()
        await pubsub.subscribe("channel")
        assert (await anext(pubsub.listen()))["type"] == "subscribe"
        await redis.publish("channel", "message")
        assert (await anext(pubsub.listen()))["data"] == b"message"
    async with redis.pipeline() as pipe:
        await pipe.watch("k")
        pipe.multi()
        pipe.get("k")
        assert await pipe.execute() == [b"2"]


async def test_async_callbacks_and_single_clients_work(redis: Any) -> None:
    async def doubled(answer: bytes) -> bytes:
        return answer * 2

    redis.set_response_callback("ECHO", doubled)
    assert await redis.echo("x") == b"xx"
    async with redis.client() as alone:
        assert await alone.client_id() == await alone.client_id() != await redis.client_id()


async def test_stateful_command_avoids_the_shared_connection(redis: Any) -> None:
    await redis.set("here", 1)
    for command in (("SELECT", "1"), ("client", "setname", "mine"), ("MULTI",), ("CLIENT REPLY", "ON")):
        await redis.execute_command(*command)
        await redis.connection_pool.disconnect()
        assert await redis.get("here") == b"1"
    with pytest.raises(ValueError, match="no order"):
        await redis.execute_command("BLPOP", "list", 1, on_reply=print)
    assert redis.stats.connections == 1


async def test_value_of_64_mib_leaves_others_served(redis: Any) -> None:
    value = b"x" * (64 << 20)
    large = asyncio.create_task(redis.set("large", value))
    assert await redis.ping()
    assert await large
    got, pong = await asyncio.gather(redis.get("large"), redis.ping())
    assert got == value
    assert pong
    await redis.delete("large")
    assert (redis.stats.connections <= 2, redis.stats.errors) == (True, 0)  # others may have stepped aside


async def test_full_queue_raises_and_sends_nothing(redis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager, "MAX_WAITING", 100)
    redis._manager._find_room()
    answers = await asyncio.gather(*(redis.incr("n") for _ in range(150)), return_exceptions=True)
    assert answers[:100] == list(range(1, 101))
    assert all(isinstance(answer, QueueFullError) for answer in answers[100:])
    assert await redis.get("n") == b"100"


async def test_many_cancelled_commands_use_one_connection(redis: Any) -> None:
    assert await asyncio.gather(*(redis.get("k") for _ in range(250))) == [None] * 250
    tasks = [asyncio.ensure_future(redis.get("k")) for _ in range(20)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    assert await redis.get("k") is None
    assert redis.stats.connections == 1


async def test_demoted_replica_is_left(redis: Any, redis_start: Any, short_path: Any) -> None:
    redis_start("replica", "--replicaof", "127.0.0.1", "1")
    async with connect(f"unix://{short_path}/replica/redis.sock", 5.0) as client:
        assert isinstance(client, PipelinedRedis)
        answers = await asyncio.gather(client.get("k"), client.set("k", 1), client.get("k"), return_exceptions=True)
        assert isinstance(answers[1], ReadOnlyError)
        assert (answers[0], answers[2]) == (None, None)  # what was on its way is answered
        assert await client.get("k") is None
        assert client.stats.connections == 2


async def test_close_waits_for_replies_then_refuses(redis_url: str) -> None:
    client: Any = connect(redis_url, 5.0)
    late = asyncio.create_task(client.echo("x"))
    await asyncio.sleep(0)
    await client.aclose()
    assert await late == b"x"
    with pytest.raises(ConnectionError, match="the client is closed"):
        await client.ping()
    await client.aclose()
