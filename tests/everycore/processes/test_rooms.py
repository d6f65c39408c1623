"""Rooms for WebSockets over two workers."""

import json
from contextlib import ExitStack
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

from everycore.testing.waiting import DEADLINE

APP = """
import os
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from everycore import state, web

settings = web.AppSettings.from_environ()

async def chat(websocket):
    await websocket.accept()
    member = websocket.query_params["name"]
    await websocket.send_json({"pid": os.getpid()})
    async with web.join_room(websocket, "lobby", member) as room:
        async for text in websocket.iter_text():
            if text == "who":
                await room.send({"members": await room.members()})
            else:
                await room.send({"from": member, "text": text})

app = Starlette(routes=[WebSocketRoute("/chat", chat)], lifespan=state.lifespan(settings))
"""


def received(visitor: ClientConnection) -> Any:
    return json.loads(visitor.recv(timeout=DEADLINE))


@pytest.fixture
def server(serve: Any, tmp_path: Any) -> Any:
    (tmp_path / "rooms.py").write_text(APP)
    return serve("--workers", "2", "--app", "rooms:app", PYTHONPATH=str(tmp_path), LINGER="0")


def test_message_reaches_everybody_in_the_room(server: Any) -> None:
    url = server.url.replace("http://", "ws://")
    with ExitStack() as stack:
        visitors = [stack.enter_context(connect(f"{url}/chat?name=visitor-{n}")) for n in range(8)]
        assert len({received(visitor)["pid"] for visitor in visitors}) == 2
        # Each one is in the room when its own message comes back; so all hear what is sent after that.
        for n, visitor in enumerate(visitors):
            visitor.send("joined")
            while received(visitor) != {"from": f"visitor-{n}", "text": "joined"}:
                pass
        visitors[0].send("hello")
        for visitor in visitors:
            while (message := received(visitor)) != {"from": "visitor-0", "text": "hello"}:
                assert message["text"] == "joined"
        visitors[1].send("who")
        for visitor in visitors:
            assert received(visitor) == {"members": [f"visitor-{n}" for n in range(8)]}


def test_member_who_leaves_is_no_longer_named(server: Any, eventually: Any) -> None:
    url = server.url.replace("http://", "ws://")
    with connect(f"{url}/chat?name=Ada") as ada:
        received(ada)
        with connect(f"{url}/chat?name=Bob") as bob:
            received(bob)
            bob.send("who")
            while "members" not in (message := received(bob)):
                pass
            assert "Bob" in message["members"]

        def members() -> list[str]:
            ada.send("who")
            while "members" not in (message := received(ada)):
                pass
            return list(message["members"])

        eventually(lambda: members() == ["Ada"])
