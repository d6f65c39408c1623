"""Rooms for WebSockets: what one visitor sends reaches all others in the room, whichever worker has them.

All rooms of a worker share its one connection for `broadcast`.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from redis.exceptions import RedisError
from starlette.websockets import WebSocket, WebSocketDisconnect

from everycore.state.broadcast import MISSED, Broadcast
from everycore.state.presence import Presence

MISSED_MESSAGE = {"missed": True}  # what a visitor gets after an outage: messages may have been lost


class Room:
    """A visitor's place in a room, made by `join_room`."""

    def __init__(self, name: str, broadcast: Broadcast, presence: Presence) -> None:
        self.name = name
        self._broadcast = broadcast
        self._presence = presence

    async def send(self, message: Any) -> None:
        """Send a JSON value to everybody in the room, this visitor too.

        Raises:
            TypeError: The value is not JSON-serializable.
            RedisError: Redis is unavailable.
        """
        await self._broadcast.send(f"room:{self.name}", message)

    async def members(self) -> list[str]:
        """Return the names of who is in the room, sorted, each once. Raises RedisError."""
        return await self._presence.members(self.name)


@asynccontextmanager
async def join_room(websocket: WebSocket, name: str, member: str) -> AsyncIterator[Room]:
    """Join a room for the `async with` block: each message of the room is sent to the WebSocket as JSON.

    `{"missed": true}` is sent where messages may have been lost, as after an outage of Redis.

    Args:
        websocket: It has been accepted.
        name: Of the room.
        member: The visitor's name, for `members`. One name may join several times.

    Raises:
        RedisError: Redis is unavailable.
    """
    presence = Presence(websocket.state.redis)
    connection = secrets.token_hex(8)
    broadcast: Broadcast = websocket.state.broadcast
    async with broadcast.listen(f"room:{name}") as messages:
        await presence.announce(name, member, connection)
        tasks = [
            asyncio.create_task(_forward(messages, websocket)),
            asyncio.create_task(_announce(presence, name, member, connection)),
        ]
        try:
            yield Room(name, broadcast, presence)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            with suppress(RedisError):  # the name expires by itself
                await presence.leave(name, member, connection)


async def _forward(messages: AsyncIterator[Any], websocket: WebSocket) -> None:
    with suppress(WebSocketDisconnect, RuntimeError):  # it was closed: the handler is told by its own next receive
        async for message in messages:
            await websocket.send_json(MISSED_MESSAGE if message is MISSED else message)


async def _announce(presence: Presence, name: str, member: str, connection: str) -> None:
    while True:
        await asyncio.sleep(presence.ttl / 3)
        with suppress(RedisError):  # an outage has its line in the log; the next one may succeed
            await presence.announce(name, member, connection)
