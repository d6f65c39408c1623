"""What a near cache stands on: answers and invalidations in the order of the stream, and word of a lost connection."""

import asyncio
from typing import Any

import pytest
from redis.exceptions import ResponseError

from everycore.state.client.connect import connect

pytestmark = [pytest.mark.anyio, pytest.mark.one_server("is about the pipelined connection")]

DEADLINE = 20.0  # seconds, generous: only a test that fails waits so long


class Heard:
    """A near cache in a nutshell: what is stored in stream order and forgotten when Redis says so."""

    def __init__(self) -> None:
        self.values: dict[bytes, Any] = {}
        self.invalidations = self.losses = 0

    def invalidated(self, keys: list[Any] | None) -> None:
        self.invalidations += 1
        for key in list(self.values) if keys is None else keys:
            self.values.pop(key, None)

    def connected(self, refusal: ResponseError | None) -> None:
        assert refusal is None

    def lost(self) -> None:
        self.losses += 1
        self.values.clear()


@pytest.mark.parametrize("mode", [(), ("BCAST", "PREFIX", "k")], ids=["tracked", "broadcast"])
async def test_value_kept_on_reply_is_never_stale(redis: Any, redis_url: str, mode: tuple[str, ...]) -> None:
    heard = Heard()
    async with asyncio.timeout(DEADLINE), connect(redis_url, 5.0) as client:
        near: Any = client
        near.add_invalidation_listener(heard, ("CLIENT", "TRACKING", "ON", *mode))

        async def read() -> None:
            await near.execute_command("GET", "k", on_reply=lambda value: heard.values.__setitem__(b"k", value))

        for turn in range(60):
            await asyncio.gather(read(), *(redis.set("k", f"{turn}-{n}") for n in range(5)), read())
            while heard.values.get(b"k", b"%d-4" % turn) != b"%d-4" % turn:
                await near.ping()  # an invalidation under way comes before this answer or the next
        assert heard.invalidations > 0
        with pytest.raises(RuntimeError, match="after the first command"):
            near.add_invalidation_listener(heard)


async def test_listener_receives_flush_and_lost_connection(redis: Any, redis_url: str) -> None:
    heard = Heard()
    async with asyncio.timeout(DEADLINE), connect(redis_url, 5.0) as client:
        near: Any = client
        near.add_invalidation_listener(heard, ("CLIENT", "TRACKING", "ON"))
        await near.get("k")
        await redis.flushall()
        while not heard.invalidations:
            await near.ping()
        await redis.execute_command("CLIENT", "KILL", "ID", await near.client_id())
        while not heard.losses:
            await asyncio.gather(near.ping(), return_exceptions=True)
        await near.get("k")  # tracked again, on the new connection
        await redis.set("k", 2)
        while heard.invalidations < 2:
            await near.ping()
        assert near.stats.connections == 2


async def test_failing_on_reply_fails_its_caller_alone(redis: Any) -> None:
    def fail(answer: object) -> None:
        raise LookupError(answer)

    broken: Any
    right: Any
    broken, right = await asyncio.gather(
        redis.execute_command("ECHO", "x", on_reply=fail), redis.echo("y"), return_exceptions=True
    )
    assert isinstance(broken, LookupError)
    assert right == b"y"
