"""The responses to errors: a page for browsers, JSON or text for others, also where a middleware refuses."""

import errno
from collections.abc import Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from everycore import state, web
from everycore.state import RateLimitMiddleware, Rule

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
JSON = {"Accept": "application/json, text/plain, */*"}
NOWHERE = "unix:///nowhere/redis.sock"


def page(request: Request, error: HTTPException) -> Response:
    return HTMLResponse(f"<h1>{error.status_code}</h1>{error.detail}", error.status_code)


async def crash(request: Request) -> Response:
    raise RuntimeError("a secret")


async def fail_to_write(request: Request) -> Response:
    raise OSError(int(request.query_params["errno"]), "cannot be written")


async def refuse(request: Request) -> Response:
    raise HTTPException(418, "No coffee", {"X-Pot": "tea"})


async def echo(request: Request) -> Response:
    return PlainTextResponse(f"{len(await request.body())}")


async def remember(request: Request) -> Response:
    request.session["name"] = "Ada"
    return PlainTextResponse("remembered")


async def count(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.state.counters.increment("n")
    raise HTTPException(400, "No reason")


async def ignore_body(request: Request) -> Response:
    return PlainTextResponse("not read")


Client = Callable[..., TestClient]


@pytest.fixture
def client(redis_url: str) -> Any:
    """Return clients of an app: `client(page, APP_ENV="production")`."""
    opened: list[TestClient] = []

    def start(made: Any = page, **environ: str) -> TestClient:
        values = {"APP_ENV": "development", "REDIS_URL": redis_url, "REDIS_TIMEOUT": "0.5", "MAX_BODY": "100"}
        settings = web.AppSettings.from_environ({**values, **environ})
        limit = Middleware(RateLimitMiddleware, rule=Rule("few", 1, per=600))
        app = Starlette(
            debug=settings.development and environ.get("DEBUG") == "on",
            routes=[
                Route("/crash", crash),
                Route("/refuse", refuse),
                Route("/write", fail_to_write),
                Route("/limited", ignore_body, middleware=[limit]),
                Route("/session", remember, middleware=[state.sessions()]),
                WebSocketRoute("/count", count),
                Route("/echo", echo, methods=["POST"]),
                Route("/large", echo, methods=["POST"], max_body_size=1000),
                Route("/ignored", ignore_body, methods=["POST"]),
            ],
            middleware=web.middleware(settings),
            exception_handlers=web.exception_handlers(made),
            lifespan=state.lifespan(settings),
        )
        opened.append(TestClient(app, raise_server_exceptions=False).__enter__())
        return opened[-1]

    yield start
    for each in opened:
        each.__exit__()


@pytest.mark.parametrize(
    ("path", "status", "detail"),
    [("/unknown", 404, "Not Found"), ("/refuse", 418, "No coffee"), ("/crash", 500, "Internal Server Error")],
)
def test_error_is_what_the_client_accepts(client: Client, path: str, status: int, detail: str) -> None:
    answers = [client().get(path, headers=accepted) for accepted in (BROWSER, JSON, {"Accept": "*/*"})]
    assert [answer.status_code for answer in answers] == [status] * 3
    assert answers[0].text == f"<h1>{status}</h1>{detail}"
    assert answers[1].json() == {"detail": detail}
    assert answers[2].text == detail
    for answer in answers:
        assert answer.headers["vary"] == "Accept"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers.get("x-pot") == ("tea" if status == 418 else None)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_is_507_with_one_log_line(client: Client, caplog: pytest.LogCaptureFixture, number: int) -> None:
    answer = client().get("/write", params={"errno": number}, headers=BROWSER)
    assert (answer.status_code, answer.text) == (507, "<h1>507</h1>The server has no room for this request.")
    (line,) = [record for record in caplog.records if record.name.startswith("everycore")]
    assert line.getMessage() == f"/write refused: [Errno {number}] cannot be written"
    assert line.exc_info is None


def test_other_error_of_the_system_is_500(client: Client) -> None:
    assert client().get("/write", params={"errno": errno.EIO}, headers=JSON).status_code == 500


def test_without_a_page_a_browser_gets_text(client: Client) -> None:
    assert client(None).get("/unknown", headers=BROWSER).text == "Not Found"


def test_page_may_be_a_coroutine(client: Client) -> None:
    async def later(request: Request, error: HTTPException) -> Response:
        return page(request, error)

    assert client(later).get("/unknown", headers=BROWSER).text == "<h1>404</h1>Not Found"


def test_page_that_fails_is_logged_and_the_client_gets_text(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    def broken(request: Request, error: HTTPException) -> Response:
        return PlainTextResponse(request.session["name"])  # a route without sessions

    answer = client(broken).get("/unknown", headers=BROWSER)
    assert (answer.status_code, answer.text) == (404, "Not Found")
    assert "the page of error 404 failed" in caplog.text


@pytest.mark.parametrize("accepted", [BROWSER, JSON])
def test_traceback_is_shown_with_debug_only(client: Client, accepted: dict[str, str]) -> None:
    production = client(APP_ENV="production", SECRET_KEY="k" * 32).get("/crash", headers=accepted).text
    assert "a secret" not in production
    assert "Traceback" not in production
    assert "a secret" in client(DEBUG="on").get("/crash", headers=accepted).text


def test_rate_limit_is_answered_by_the_page(client: Client) -> None:
    limited = client()
    assert limited.get("/limited").status_code == 200
    answer = limited.get("/limited", headers=BROWSER)
    assert answer.text.startswith("<h1>429</h1>Too many requests. Retry in ")
    assert int(answer.headers["retry-after"]) > 0
    assert answer.headers["ratelimit"].startswith('"few";r=0')
    assert limited.get("/limited", headers=JSON).json()["detail"].startswith("Too many requests.")


def test_outage_of_redis_is_answered_by_the_page(client: Client) -> None:
    down = client(REDIS_URL=NOWHERE)
    answer = down.get("/session", headers=BROWSER)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.text == "<h1>503</h1>Session store unavailable. Please retry."
    assert down.get("/session", headers=JSON).json() == {"detail": "Session store unavailable. Please retry."}


@pytest.mark.parametrize(("environ", "code"), [({}, 1008), ({"REDIS_URL": NOWHERE}, 1013)])
def test_accepted_websocket_is_closed(client: Client, environ: dict[str, str], code: int) -> None:
    with client(**environ).websocket_connect("/count") as opened, pytest.raises(WebSocketDisconnect) as closed:
        opened.receive_text()
    assert closed.value.code == code


def test_request_of_another_site_is_answered_by_the_page(client: Client) -> None:
    sent = {**BROWSER, "Origin": "https://evil.example"}
    assert client().post("/echo", headers=sent).text.startswith("<h1>403</h1>This request was sent by another site")


def test_body_that_is_too_large_is_answered_by_the_page(client: Client) -> None:
    started = client()
    for body in (b"x" * 101, iter([b"x" * 60] * 2)):
        answer = started.post("/echo", content=body, headers=BROWSER)
        assert (answer.status_code, answer.text) == (413, "<h1>413</h1>Content Too Large")
    ignored = started.post("/ignored", content=b"x" * 101, headers=BROWSER)
    assert (ignored.status_code, ignored.text) == (413, "Content Too Large")
    assert started.post("/large", content=b"x" * 1000).text == "1000"
    assert started.post("/large", content=b"x" * 1001).status_code == 413
