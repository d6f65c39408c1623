"""The controls: which requests they accept, and which signals they send. The signals are recorded, not sent."""

import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.exceptions import ResponseError
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.testclient import TestClient

from everycore_demo import controls
from everycore_demo.controls import MAX_WORKERS, Controls

ORIGIN = "http://localhost"
ENDPOINT = Controls(["a-key-of-more-than-thirty-two-characters"])
ACCEPTED = {"Origin": ORIGIN, "X-Control-Token": ENDPOINT.token}
KNOWN = 1234


class Redis:
    paused: int = 0

    async def client_pause(self, milliseconds: int) -> None:
        Redis.paused = milliseconds


@pytest.fixture
def board() -> Any:
    return SimpleNamespace(primary=os.getppid(), wanted=2, workers=[SimpleNamespace(slot=1, pid=KNOWN)])


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Record the signals instead of sending them, and the sleeps as (0, seconds)."""
    signals: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *signalled: signals.append(signalled))
    monkeypatch.setattr("time.sleep", lambda seconds: signals.append((0, seconds)))
    return signals


@pytest.fixture
def client(board: Any, sent: Any) -> Iterator[TestClient]:
    cluster = SimpleNamespace(host="a", slot=0, pid=1, generation=1, snapshot=lambda: board)
    yield serving({"cluster": cluster, "redis": Redis()})


def serving(state: dict[str, Any]) -> TestClient:
    app = Starlette(routes=[Route("/control/{name}", ENDPOINT.control, methods=["POST"])])

    async def with_state(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "state": state}, receive, send)

    return TestClient(with_state, base_url=ORIGIN)


@pytest.mark.parametrize(
    "origin",
    [
        {},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": ORIGIN + ".evil.example"},
        {"Origin": "http://[", "Host": ""},
        {"Origin": ORIGIN, "Sec-Fetch-Site": "cross-site"},
        {"Origin": ORIGIN, "Sec-Fetch-Site": "same-site"},
        {"Origin": ORIGIN, "Sec-Fetch-Site": "none"},
    ],
)
def test_control_from_another_site_is_refused(client: TestClient, sent: Any, origin: dict[str, str]) -> None:
    answer = client.post("/control/reload", headers={"X-Control-Token": ENDPOINT.token, **origin})
    assert answer.status_code == 403
    assert answer.json() == {"error": "the request came from another site"}
    assert sent == []


def test_control_by_host_name_is_refused(client: TestClient, sent: Any) -> None:
    theirs = {**ACCEPTED, "Host": "evil.example", "Origin": "http://evil.example", "Sec-Fetch-Site": "same-origin"}
    answer = client.post("/control/reload", headers=theirs)
    assert answer.status_code == 403
    assert "DNS rebinding" in answer.json()["error"]
    assert sent == []
    for number in ("127.0.0.1:8000", "[::1]:8000"):
        ours = {**ACCEPTED, "Host": number, "Origin": f"http://{number}"}
        assert client.post("/control/reload", headers=ours).status_code == 200


@pytest.mark.parametrize("token", [None, "", "x", ENDPOINT.token[:-1], ENDPOINT.token + "x", "\xe9"])
def test_control_without_the_token_is_refused(client: TestClient, sent: Any, token: str | None) -> None:
    headers = {b"Origin": ORIGIN.encode()}
    if token is not None:
        headers[b"X-Control-Token"] = token.encode("latin-1")
    answer = client.post("/control/reload", headers=headers)
    assert answer.status_code == 403
    assert "token" in answer.json()["error"]
    assert sent == []


def test_token_depends_on_the_secret_key() -> None:
    assert Controls(["another"]).token != ENDPOINT.token


@pytest.mark.parametrize("pid", ["", "1", "-1", "0", "99999999999999999999", "x", f"{KNOWN}.0", f" {KNOWN}", "١٢"])
def test_kill_of_an_unknown_pid_sends_no_signal(client: TestClient, sent: Any, pid: str) -> None:
    answer = client.post("/control/kill", params={"pid": pid}, headers=ACCEPTED)
    assert (answer.status_code, answer.json()) == (404, {"error": "no worker has this pid"})
    assert sent == []


def test_control_with_random_input_returns_an_error(client: TestClient) -> None:
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
    @given(st.text(min_size=1).filter(lambda text: text not in controls.CONTROLS), st.text(), st.binary())
    def refused(verb: str, pid: str, body: bytes) -> None:
        answer = client.post(f"/control/{verb.encode().hex()}", params={"pid": pid}, content=body, headers=ACCEPTED)
        assert answer.status_code == 404
        assert "there are kill" in answer.json()["error"]
        answer = client.post("/control/kill", params={"pid": pid}, content=body, headers=ACCEPTED)
        assert answer.status_code == 404

    refused()


def test_control_with_get_is_refused(client: TestClient, sent: Any) -> None:
    assert client.get("/control/reload", headers=ACCEPTED).status_code == 405
    assert sent == []


@pytest.mark.parametrize(
    ("verb", "expected"),
    [
        ("kill", (KNOWN, signal.SIGKILL)),
        ("block", (0, 5.0)),
        ("reload", (os.getppid(), signal.SIGHUP)),
        ("more", (os.getppid(), signal.SIGTTIN)),
        ("fewer", (os.getppid(), signal.SIGTTOU)),
    ],
)
def test_control_sends_signal_after_response(client: TestClient, sent: Any, verb: str, expected: Any) -> None:
    headers = ACCEPTED | {"Sec-Fetch-Site": "same-origin"}
    answer = client.post(f"/control/{verb}", params={"pid": KNOWN}, headers=headers)
    assert answer.status_code == 200
    assert answer.json()["done"]
    assert sent == [expected]


def test_scale_beyond_its_limits_is_refused(client: TestClient, sent: Any, board: Any) -> None:
    for verb, wanted in (("more", MAX_WORKERS), ("fewer", 1)):
        board.wanted = wanted
        assert client.post(f"/control/{verb}", headers=ACCEPTED).status_code == 409
    assert sent == []


def test_control_without_a_primary_sends_no_signal(client: TestClient, sent: Any, board: Any) -> None:
    board.primary = 99
    for verb in ("reload", "more", "fewer"):
        answer = client.post(f"/control/{verb}", headers=ACCEPTED)
        assert (answer.status_code, answer.json()) == (409, {"error": "the primary has ended"})
    assert sent == []


def test_control_under_plain_uvicorn_only_pauses_redis(sent: Any) -> None:
    alone = serving({"redis": Redis()})
    for verb in ("kill", "reload", "more", "fewer"):
        assert alone.post(f"/control/{verb}", headers=ACCEPTED).status_code == 409
    assert alone.post("/control/pause", headers=ACCEPTED).status_code == 200
    assert Redis.paused == controls.PAUSE_MS
    assert sent == []


def test_pause_refused_by_redis_returns_an_error(sent: Any) -> None:
    class Forbids:
        async def client_pause(self, milliseconds: int) -> None:
            raise ResponseError("NOPERM")

    answer = serving({"redis": Forbids()}).post("/control/pause", headers=ACCEPTED)
    assert (answer.status_code, answer.json()) == (503, {"error": "Redis did not pause: NOPERM"})
