"""The chat over two real workers."""

import json
from contextlib import ExitStack

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

DEADLINE = 20  # seconds; only a failing test waits this long


@pytest.fixture
def server(serve):
    return serve(workers=2, app="examples.chat:create_app")


@pytest.fixture
def enter(server):
    """Enter a room by the form: `enter("Ada")` returns an open WebSocket. It is closed when the test ends."""
    with ExitStack() as stack:

        def start(name, room="lobby", **headers):
            visitor = server.client()
            answer = visitor.post("/", {"name": name, "room": room})
            assert (answer.status, answer.headers["location"]) == (303, f"/{room}")
            headers = {"Cookie": answer.headers["set-cookie"].partition(";")[0], **headers}
            url = f"{server.url.replace('http', 'ws', 1)}/{room}/talk"
            return stack.enter_context(connect(url, additional_headers=headers))

        yield start


def received(member, wanted):
    """Return the next message that the condition accepts."""
    while not wanted(message := json.loads(member.recv(timeout=DEADLINE))):
        pass
    return message


def test_message_reaches_members_on_both_workers(server, enter):
    names = [f"member-{n}" for n in range(8)]
    members = [enter(name) for name in names]
    assert all(row.connections for row in server.control.snapshot().workers)
    stranger = enter("Eve", "elsewhere")
    for member in members:
        received(member, lambda message: message.get("members") == names)
    members[0].send("hello")
    for member in members:
        assert received(member, lambda message: "text" in message) == {"from": "member-0", "text": "hello"}
    stranger.send("")
    assert received(stranger, lambda message: "text" not in message) == {"members": ["Eve"]}


def test_member_who_leaves_is_no_longer_named(enter):
    ada, bob = enter("Ada"), enter("Bob")
    received(ada, lambda message: message.get("members") == ["Ada", "Bob"])
    bob.close()
    received(ada, lambda message: message.get("members") == ["Ada"])


def test_member_who_sends_too_much_is_told(enter):
    ada = enter("Ada")
    for n in range(20):
        ada.send(f"message {n}")
    assert received(ada, lambda message: message.get("from") == "Chat")["text"].startswith("Not so fast")


def test_visitor_without_a_name_gets_the_form(server):
    assert 'name="name"' in server.client().get("/lobby").text
    url = f"{server.url.replace('http', 'ws', 1)}/lobby/talk"
    with connect(url) as opened, pytest.raises(ConnectionClosed) as closed:
        opened.recv(timeout=DEADLINE)
    assert closed.value.rcvd.code == 1008


def test_page_of_another_site_cannot_connect(enter):
    with pytest.raises(InvalidStatus):
        enter("Ada", Origin="https://evil.example")
