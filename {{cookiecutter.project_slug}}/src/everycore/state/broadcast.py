"""One message to every worker of every host, over Redis' PUBLISH and SUBSCRIBE.

At most once: nothing is kept for a listener that is cut off. MISSED among its messages tells it so, and it can read
again what the messages were about. However many listen in a worker, it has one connection for all of them.
"""

import asyncio
import json
import logging
import random
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from enum import Enum
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import ConnectionError, RedisError, ResponseError

from everycore.state.prefix import prefixed

MAX_WAITING = 1000  # messages for one listener; a slower one has missed some
PING_INTERVAL = 5.0  # seconds of silence, after which the server is asked, and after twice of which it is gone
RECONNECT_PAUSE = (0.1, 0.5)  # seconds, with jitter, so that not all workers come at once
MAX_PAUSE = 10.0  # seconds between two attempts, of which each waits twice as long as the one before

log = logging.getLogger(__name__)


class Missed(Enum):
    MISSED = "missed"


MISSED: Final = Missed.MISSED


class Messages:
    """What one listener gets, in the order in which Redis had it: JSON values, and MISSED."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[Any] = asyncio.Queue(MAX_WAITING)

    def __aiter__(self) -> "Messages":
        return self

    async def __anext__(self) -> Any:
        message = await self._waiting.get()
        if isinstance(message, ResponseError):
            raise message
        return message

    def deliver(self, message: Any) -> None:
        if self._waiting.full():
            while not self._waiting.empty():
                self._waiting.get_nowait()
            message = MISSED
        self._waiting.put_nowait(message)


class _Channel:
    def __init__(self) -> None:
        self.listeners: set[Messages] = set()
        self.subscribed = asyncio.Event()  # stays set through a reconnect
        self.refusal: ResponseError | None = None


class Broadcast:
    """Sends and listens, on channels named `broadcast:<channel>`; to be closed in the worker's lifespan."""

    def __init__(self, redis: Redis, prefix: str = "broadcast:") -> None:
        self._redis = redis
        self._prefix = prefixed(redis, prefix)
        self._channels: dict[bytes, _Channel] = {}
        self._unconfirmed: set[bytes] = set()
        self._awaiting_reply: deque[bytes | None] = (
            deque()
        )  # what was sent and not answered; None for all but a SUBSCRIBE
        self._pubsub: PubSub | None = None  # while it is connected
        self._reader: asyncio.Task[None] | None = None
        self._failures = 0  # of the connection, in a row
        self._refused: set[bytes] = set()  # channels of which that was logged
        self._closed = False

    async def send(self, channel: str, message: Any) -> None:
        """Send a JSON value to all who listen now, this worker too. Raises TypeError for what is no JSON."""
        await self._redis.publish(self._prefix + channel, json.dumps(message, separators=(",", ":")))

    @asynccontextmanager
    async def listen(self, channel: str) -> AsyncIterator[Messages]:
        """Listen to what is sent from here on; while Redis is away this waits for it.

            async with request.state.broadcast.listen("prices") as messages:
                async for message in messages:
                    ...  # read again what matters `if message is MISSED`

        MISSED comes after a lost connection is back, and if more than MAX_WAITING messages were not taken in time.
        All listeners of a worker get the same object: leave it as it is. Raises ResponseError if Redis refuses the
        channel, here or, when a right is taken away later, from the iteration.
        """
        name, messages = (self._prefix + channel).encode(), Messages()
        if self._reader is None:
            self._reader = asyncio.create_task(self._read())
        first = name not in self._channels
        entry = self._channels.setdefault(name, _Channel())
        entry.listeners.add(messages)
        try:
            if first:
                self._unconfirmed.add(name)
                await self._send_subscription("SUBSCRIBE", name)
            await entry.subscribed.wait()
            if entry.refusal is not None:
                raise entry.refusal
            yield messages
        finally:
            entry.listeners.discard(messages)
            await self._unsubscribe_if_unused(name)

    async def aclose(self) -> None:
        """End the connection. To be awaited before the client is closed."""
        self._closed = True
        if self._reader is not None:
            self._reader.cancel()
            with suppress(asyncio.CancelledError):
                await self._reader

    async def _unsubscribe_if_unused(self, name: bytes) -> None:
        # An unconfirmed one is left when its confirmation comes: that must not be taken for a later listener's.
        if name in self._channels and not self._channels[name].listeners and name not in self._unconfirmed:
            del self._channels[name]
            await self._send_subscription("UNSUBSCRIBE", name)

    async def _send_subscription(self, verb: str, name: bytes) -> None:
        pubsub = self._pubsub
        if pubsub is None:
            return  # the reader subscribes to all when it has connected
        sent = False
        self._awaiting_reply.append(name if verb == "SUBSCRIBE" else None)
        try:
            await (pubsub.subscribe(name) if verb == "SUBSCRIBE" else pubsub.unsubscribe(name))
            sent = True
        except (RedisError, AttributeError) as error:  # redis-py writes to None if it is closed at this very moment
            log.debug("broadcast: %s %r: %s", verb, name, error)
        finally:
            if not sent and self._pubsub is pubsub:
                self._pubsub = None  # what was written is not known, so the reader connects anew

    async def _read(self) -> None:
        while not self._closed:  # asked, because Python 3.11 may drop a cancel: see cancels.py
            pubsub: PubSub | None = None
            try:
                await self._redis.initialize()  # of a Redis Cluster the nodes have to be known
                pubsub = self._redis.pubsub()
                await pubsub.connect()  # type: ignore[no-untyped-call]
                self._pubsub, self._unconfirmed = pubsub, set(self._channels)
                self._awaiting_reply.clear()
                for name in list(self._channels):  # one by one: Redis refuses all channels of a command, or none
                    await self._send_subscription("SUBSCRIBE", name)
                await self._receive(pubsub)
            except Exception as error:  # whatever it was: without a reader nobody would hear anything again
                if self._pubsub is not None and not self._failures:
                    log.warning("broadcast lost its connection: %s", error)
                self._failures += 1
            finally:
                self._pubsub = None
                if pubsub is not None:
                    await pubsub.aclose()  # type: ignore[no-untyped-call]
            if not self._closed:
                factor = 2 ** min(max(0, self._failures - 1), 10)
                await asyncio.sleep(min(MAX_PAUSE, random.uniform(*RECONNECT_PAUSE) * factor))

    async def _receive(self, pubsub: PubSub) -> None:
        pinged = False
        while self._pubsub is pubsub and not self._closed:
            try:
                message = await pubsub.get_message(timeout=PING_INTERVAL)
            except ResponseError as refusal:
                pinged = False
                name = self._awaiting_reply.popleft() if self._awaiting_reply else None
                if name is not None:
                    self._refuse(name, refusal)
                continue
            if message is not None:
                pinged = False
                self._failures = 0
                if message["type"] in ("subscribe", "unsubscribe", "pong") and self._awaiting_reply:
                    self._awaiting_reply.popleft()
                await self._dispatch(message)
            elif pinged:
                raise ConnectionError("no answer to a PING")
            else:
                pinged = True
                self._awaiting_reply.append(None)
                await pubsub.ping()

    def _refuse(self, name: bytes, refusal: ResponseError) -> None:
        """Fail the listeners of a channel. Who listens to it later has Redis asked again."""
        self._unconfirmed.discard(name)
        channel = self._channels.pop(name, None)
        if channel is None:
            return
        text = f"Redis refuses to subscribe to the channel {name.decode()!r}: {refusal}"
        if name not in self._refused:
            self._refused.add(name)
            log.warning("broadcast: %s", text)
        channel.refusal = type(refusal)(text)
        channel.subscribed.set()
        for listener in channel.listeners:
            listener.deliver(channel.refusal)

    async def _dispatch(self, message: dict[str, Any]) -> None:
        name = message["channel"]
        channel = self._channels.get(name)
        if message["type"] == "subscribe" and channel is not None:
            self._unconfirmed.discard(name)
            if channel.subscribed.is_set():  # again: the connection was lost meanwhile
                for listener in channel.listeners:
                    listener.deliver(MISSED)
            channel.subscribed.set()
            await self._unsubscribe_if_unused(name)
        elif message["type"] == "message" and channel is not None:
            try:
                value = json.loads(message["data"])
            except ValueError:
                log.warning("broadcast: what came on %r is no JSON", name)
                return
            for listener in channel.listeners:
                listener.deliver(value)
