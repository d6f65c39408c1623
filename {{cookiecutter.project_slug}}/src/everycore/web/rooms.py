"""Rooms for WebSockets: a message of one member reaches all members of the room, on any worker and host.

All rooms of a worker share one connection to Redis, that of `broadcast`.
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

MISSED_MESSAGE = {"missed": True}  # sent to a member after an outage, because messages may have been lost


class Room:
    """A room that a member has joined. `join_room` creates it."""

    def __init__(self, name: str, broadcast: Broadcast, presence: Presence) -> None:
        self.name = name
        self._broadcast = broadcast
        self._presence = presence

    async def send(self, message: Any) -> None:
        """Send a message to all members of the room, including this one.

        Args:
            message: A JSON-serializable value.

        Raises:
            TypeError: The value is not JSON-serializable.
            RedisError: Redis is unavailable.
        """
        await self._broadcast.send(f"room:{self.name}", message)

    async def members(self) -> list[str]:
        """Return the sorted names of the members of the room, each name once.

        Raises:
            RedisError: Redis is unavailable.
        """
        return await self._presence.members(self.name)


@asynccontextmanager
async def join_room(websocket: WebSocket, name: str, member: str) -> AsyncIterator[Room]:
    """Join a room for the `async with` block, and send each message of the room to the WebSocket as JSON.

    `{"missed": true}` is sent if messages may have been lost, for example after Redis was unavailable.

    Args:
        websocket: A WebSocket that has been accepted.
        name: Name of the room.
        member: Name of the member, for `members`. The same name may join several times.

    Yields:
        The room.

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
    # If the WebSocket was closed, the next receive of the handler raises, so the error is not needed here.
    with suppress(WebSocketDisconnect, RuntimeError):
        async for message in messages:
            await websocket.send_json(MISSED_MESSAGE if message is MISSED else message)


async def _announce(presence: Presence, name: str, member: str, connection: str) -> None:
    while True:
        await asyncio.sleep(presence.ttl / 3)
        with suppress(RedisError):  # the client has logged that Redis is unavailable; the next try may succeed
            await presence.announce(name, member, connection)
