"""Broadcast to every worker of every host, over Redis' PUBLISH and SUBSCRIBE.

At-most-once delivery: messages are not stored. A listener that was disconnected receives MISSED and should reload its
data. All listeners of a worker share one connection.
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

MAX_WAITING = 1000  # messages queued for one listener; a slower listener misses some
PING_INTERVAL = 5.0  # seconds of silence before a PING; without a reply the connection is lost after as many again
RECONNECT_PAUSE = (0.1, 0.5)  # seconds at random, so that workers do not reconnect at once; doubled at each failure
MAX_PAUSE = 10.0  # seconds between two attempts

log = logging.getLogger(__name__)


class Missed(Enum):
    """The type of MISSED."""

    MISSED = "missed"


MISSED: Final = Missed.MISSED


class Messages:
    """The messages of one listener, in Redis' order: JSON values, and MISSED."""

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
        """Queue a message; a full queue is replaced by MISSED."""
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
    """Sends to and listens on channels, `broadcast:<channel>` in Redis. Await `aclose` in the worker's lifespan.

    Args:
        redis: The client.
        prefix: First part of the channels' names, after the client's prefix.
    """

    def __init__(self, redis: Redis, prefix: str = "broadcast:") -> None:
        self._redis = redis
        self._prefix = prefixed(redis, prefix)
        self._channels: dict[bytes, _Channel] = {}
        self._unconfirmed: set[bytes] = set()
        # What was sent and not answered; None for all but a SUBSCRIBE.
        self._awaiting_reply: deque[bytes | None] = deque()
        self._pubsub: PubSub | None = None  # while it is connected
        self._reader: asyncio.Task[None] | None = None
        self._failures = 0  # of the connection, in a row
        self._refused: set[bytes] = set()  # channels whose refusal was logged
        self._closed = False

    async def send(self, channel: str, message: Any) -> None:
        """Send a JSON value to all current listeners, including those of this worker.

        Raises:
            TypeError, ValueError: The value is not JSON-serializable.
            RedisError: Redis is unavailable. The message may have been sent or not.
        """
        await self._redis.publish(self._prefix + channel, json.dumps(message, separators=(",", ":")))

    @asynccontextmanager
    async def listen(self, channel: str) -> AsyncIterator[Messages]:
        """Listen to messages sent from now on. Waits while Redis is unavailable.

            async with request.state.broadcast.listen("prices") as messages:
                async for message in messages:
                    ...  # reload the data `if message is MISSED`

        Args:
            channel: The channel's name.

        Returns:
            A context manager that yields an async iterator of values. MISSED follows a lost connection, and more than
            MAX_WAITING messages that were not read in time. All listeners get the same objects; do not change them.

        Raises:
            ResponseError: Redis refuses the channel, now or, after a change of rights, in the iteration.
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
        """Close the connection. Await it before the client is closed."""
        self._closed = True
        if self._reader is not None:
            self._reader.cancel()
            with suppress(asyncio.CancelledError):
                await self._reader

    async def _unsubscribe_if_unused(self, name: bytes) -> None:
        # An unconfirmed subscription ends when its confirmation arrives, which must not count for a later listener.
        if name in self._channels and not self._channels[name].listeners and name not in self._unconfirmed:
            del self._channels[name]
            await self._send_subscription("UNSUBSCRIBE", name)

    async def _send_subscription(self, verb: str, name: bytes) -> None:
        pubsub = self._pubsub
        if pubsub is None:
            return  # the reader subscribes to all channels when it connects
        sent = False
        self._awaiting_reply.append(name if verb == "SUBSCRIBE" else None)
        try:
            await (pubsub.subscribe(name) if verb == "SUBSCRIBE" else pubsub.unsubscribe(name))
            sent = True
        except (RedisError, AttributeError) as error:  # AttributeError: redis-py writes to None if closed meanwhile
            log.debug("broadcast: %s %r: %s", verb, name, error)
        finally:
            if not sent and self._pubsub is pubsub:
                self._pubsub = None  # it is unknown what was written, so the reader reconnects

    async def _read(self) -> None:
        while not self._closed:  # Python 3.11 may lose a cancellation, see cancellation.py
            pubsub: PubSub | None = None
            try:
                await self._redis.initialize()  # a RedisCluster must know its nodes
                pubsub = self._redis.pubsub()
                await pubsub.connect()  # type: ignore[no-untyped-call]
                self._pubsub, self._unconfirmed = pubsub, set(self._channels)
                self._awaiting_reply.clear()
                for name in list(self._channels):  # one by one, because Redis refuses all channels of a command or none
                    await self._send_subscription("SUBSCRIBE", name)
                await self._receive(pubsub)
            except Exception as error:  # any error, because without the reader no listener gets messages
                if self._pubsub is not None and not self._failures:
                    log.warning("broadcast: connection lost: %s", error)
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
        """Fail the listeners of a channel. A later listener subscribes again."""
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
            if channel.subscribed.is_set():  # subscribed again after a lost connection
                for listener in channel.listeners:
                    listener.deliver(MISSED)
            channel.subscribed.set()
            await self._unsubscribe_if_unused(name)
        elif message["type"] == "message" and channel is not None:
            try:
                value = json.loads(message["data"])
            except ValueError:
                log.warning("broadcast: invalid JSON on channel %r", name)
                return
            for listener in channel.listeners:
                listener.deliver(value)
