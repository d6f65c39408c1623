"""Starlette's own SessionMiddleware and ours under the same tests, and a table of where ours differs.

The behaviors are those that Starlette 1.10 tests. Its options `partitioned` and `max_age=None` are not offered.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware import sessions as starlette_sessions
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from everycore.state.client.connect import connect
from everycore.state.sessions.cookie import SessionCookie
from everycore.state.sessions.middleware import SessionMiddleware
from everycore.state.sessions.store import Lifetimes, SessionStore
from test_session import stored

KEY = "a-key-of-more-than-thirty-two-characters"
STARLETTE, OURS = "starlette", "ours"
DAY = 86400


def union(session: Any) -> None:
    session |= {"c": "3"}


STEPS: dict[str, Callable[[Any], Any]] = {
    "view": lambda session: None,
    "update": lambda session: session.update({"a": "1", "b": "2"}),
    "update by name": lambda session: session.update(a=1, c=None),
    "union": union,
    "set": lambda session: session.__setitem__("a", {"list": [1, 2.5, True]}),
    "delete": lambda session: session.__delitem__("a"),
    "pop": lambda session: session.pop("a"),
    "pop nothing": lambda session: session.pop("nothing", 7),
    "popitem": lambda session: session.popitem(),
    "set default": lambda session: session.setdefault("a", []),
    "clear": lambda session: session.clear(),
    "nested": lambda session: session["a"]["list"].append(3),
    "number as key": lambda session: session.__setitem__(1, "one"),
}


async def do(request: Request) -> Response:
    """Do one of STEPS; answer with its result and the session."""
    result = STEPS[request.query_params["step"]](request.session)
    return JSONResponse([result, request.session])


async def pop_in_scope(request: Request) -> Response:
    return JSONResponse([request.scope["session"].pop("a")])


async def ignore(request: Request) -> Response:
    return JSONResponse({})


ROUTES = [Route("/app/do", do), Route("/app/pop_in_scope", pop_in_scope), Route("/app/ignore", ignore)]


def starlettes(age: int = 14 * DAY, secure: bool = False, path: str = "/", domain: str | None = None) -> Starlette:
    options: Any = {"max_age": age, "https_only": secure, "path": path, "domain": domain}
    return Starlette(
        routes=ROUTES, middleware=[Middleware(starlette_sessions.SessionMiddleware, secret_key=KEY, **options)]
    )


def ours(url: str, age: int = 90 * DAY, secure: bool = False, path: str = "/", domain: str | None = None) -> Starlette:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        async with connect(url, 5.0) as redis:
            cookie = SessionCookie("session", secure, path, domain)
            yield {"sessions": SessionStore(redis, [KEY], Lifetimes(absolute=age), cookie=cookie)}

    return Starlette(routes=ROUTES, middleware=[Middleware(SessionMiddleware)], lifespan=lifespan)


Browser = Callable[..., TestClient]


@pytest.fixture
def browser_of(redis_url: str) -> Iterator[Callable[[str], Browser]]:
    """`browser_of(STARLETTE)(secure=True)` is a browser on an app with that middleware and these options."""
    with ExitStack() as stack:

        def of(which: str) -> Browser:
            def make(scheme: str = "http", **options: Any) -> TestClient:
                app = starlettes(**options) if which == STARLETTE else ours(redis_url, **options)
                return stack.enter_context(TestClient(app, base_url=f"{scheme}://shop.example.com"))

            return make

        yield of


@pytest.fixture(params=[STARLETTE, OURS])
def browser(request: pytest.FixtureRequest, browser_of: Callable[[str], Browser]) -> Browser:
    return browser_of(request.param)


def after(client: TestClient, *steps: str) -> Any:
    """Do steps, one in each request; return what the last one answered."""
    for step in steps:
        answer = client.get("/app/do", params={"step": step})
    return answer.json()


@pytest.mark.parametrize(
    "steps",
    [
        ("view", "update", "view", "clear", "view", "update", "view"),
        ("update", "union", "view"),
        ("update", "popitem", "view"),
        ("update", "pop", "view", "set default", "view"),
        ("update by name", "delete", "view", "union", "view"),
        ("set", "update by name", "view", "set", "pop nothing", "set default", "view"),
    ],
)
def test_session_equals_a_dict_over_requests(browser: Browser, steps: tuple[str, ...]) -> None:
    client, model = browser(), dict[str, Any]()
    for step in steps:
        result = STEPS[step](model)
        assert after(client, step) == [list(result) if isinstance(result, tuple) else result, model]


@pytest.mark.parametrize("cookie", ["invalid", "", "a.b", "e30=.aaaa.bbbb", "x" * 5000])
def test_bad_cookie_is_an_empty_session(browser: Browser, cookie: str) -> None:
    client = browser()
    client.cookies.set("session", cookie)
    assert after(client, "view") == [None, {}]
    assert after(client, "update")[1] == {"a": "1", "b": "2"}


def test_visitor_without_cookie_has_an_empty_session(browser: Browser) -> None:
    client = browser()
    after(client, "update")
    client.cookies.clear()
    assert after(client, "view") == [None, {}]


def test_expired_session_is_empty(browser: Browser) -> None:
    client = browser(age=-1)
    cookie = client.get("/app/do?step=update").headers["set-cookie"].partition(";")[0]
    assert client.get("/app/do?step=view", headers={"Cookie": cookie}).json() == [None, {}]


def test_secure_cookie_is_for_https_alone(browser: Browser) -> None:
    plain, secure = browser(secure=True), browser(scheme="https", secure=True)
    after(plain, "update")
    assert after(plain, "view") == [None, {}]
    assert after(secure, "update", "view")[1] == {"a": "1", "b": "2"}
    assert after(secure, "clear", "view") == [None, {}]


def attributes(cookie: str) -> set[str]:
    return set(cookie.lower().split("; ")[1:])


def test_cookie_has_the_path_and_domain_that_were_set(browser: Browser) -> None:
    client = browser(path="/app", domain=".example.com")
    for step in ("update", "clear"):
        cookie = client.get("/app/do", params={"step": step}).headers["set-cookie"]
        assert {"path=/app", "domain=.example.com", "httponly", "samesite=lax"} <= attributes(cookie)
    assert after(client, "update", "view")[1] == {"a": "1", "b": "2"}


def test_cookie_is_set_by_a_change_alone(browser: Browser) -> None:
    client = browser()
    changed, read = client.get("/app/do?step=update"), client.get("/app/do?step=view")
    assert ("set-cookie" in changed.headers, "set-cookie" in read.headers) == (True, False)


def test_vary_is_set_where_the_session_was_looked_at(browser: Browser) -> None:
    client = browser()
    pages = ("do?step=update", "do?step=view", "pop_in_scope", "ignore")
    assert [client.get(f"/app/{page}").headers.get("vary") for page in pages] == ["Cookie"] * 3 + [None]
    assert after(client, "view") == [None, {"b": "2"}]


@pytest.mark.parametrize("make", [lambda: starlette_sessions.Session(a="1"), lambda: stored(a="1")])
@pytest.mark.parametrize(
    ("step", "marks"),
    [
        *((step, (True, True)) for step in ("update", "union", "set", "delete", "pop", "popitem", "clear")),
        *((step, (False, False)) for step in ("view", "pop nothing", "set default")),
    ],
)
def test_session_is_marked_as_starlettes(make: Callable[[], Any], step: str, marks: tuple[bool, bool]) -> None:
    session = make()
    STEPS[step](session)
    assert (session.accessed, session.modified) == marks


def age_of_cookie(client: TestClient) -> Any:
    cookie = client.get("/app/do?step=update").headers["set-cookie"].lower()
    return next(each for each in attributes(cookie) if each.startswith("max-age"))


def cookie_of_second_change(client: TestClient) -> Any:
    after(client, "update")
    return "set-cookie" in client.get("/app/do?step=union").headers


def cookie_of_the_last_key_deleted(client: TestClient) -> Any:
    after(client, "union")
    return "set-cookie" in client.get("/app/do?step=popitem").headers


def session_of_cookie_before_clear(client: TestClient) -> Any:
    after(client, "union")
    cookie = f"session={client.cookies['session']}"
    after(client, "clear")
    return client.get("/app/do?step=view", headers={"Cookie": cookie}).json()[1]


def nested_change(client: TestClient) -> Any:
    return after(client, "set", "nested", "view")[1]["a"]["list"]


def number_as_key(client: TestClient) -> Any:
    with suppress(TypeError):
        return after(client, "number as key", "view")[1]
    return TypeError


@pytest.mark.parametrize(
    ("look", "starlettes", "ours"),
    [
        (age_of_cookie, f"max-age={14 * DAY}", f"max-age={90 * DAY}"),  # SESSION_ABSOLUTE
        (cookie_of_second_change, True, False),  # it holds the id, and the id has not changed
        (cookie_of_the_last_key_deleted, True, False),  # only `clear` ends a session
        (session_of_cookie_before_clear, {"c": "3"}, {}),
        (nested_change, [1, 2.5, True], [1, 2.5, True, 3]),
        (number_as_key, {"1": "one"}, TypeError),
    ],
)
def test_difference_from_starlettes_is_as_documented(
    browser_of: Callable[[str], Browser], look: Callable[[TestClient], Any], starlettes: Any, ours: Any
) -> None:
    assert look(browser_of(STARLETTE)()) == starlettes
    assert look(browser_of(OURS)()) == ours
