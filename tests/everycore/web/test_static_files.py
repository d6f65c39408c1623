"""Static files: a hash in the URL, and a browser keeps for a year only what that hash was made of."""

from collections.abc import Callable
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from everycore.web import StaticFiles

YEAR = "public, max-age=31536000, immutable"
ASK = "no-cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "fonts").mkdir()
    (tmp_path / "style.css").write_text("a {}")
    (tmp_path / "fonts" / "a.woff2").write_text("font")
    return tmp_path


Start = Callable[..., TestClient]


@pytest.fixture
def start(folder: Path) -> Start:
    """Return a client of an app that serves the folder as it is now; `/url` responds with the URL of a file."""

    def app(debug: bool = False, root_path: str = "") -> TestClient:
        static = StaticFiles(folder)

        async def url(request: Request) -> Response:
            return PlainTextResponse(static.urls(request)["static"](request.query_params["path"]))

        routes = [Route("/url", url), Mount("/static", static, name="static")]
        return TestClient(Starlette(debug=debug, routes=routes), root_path=root_path)

    return app


def url_of(client: TestClient, path: str = "style.css") -> str:
    return client.get("/url", params={"path": path}).text


def test_url_has_a_hash_and_is_kept_for_a_year(start: Start) -> None:
    client = start()
    for path, content in (("style.css", "a {}"), ("fonts/a.woff2", "font")):
        url = url_of(client, path)
        assert url.startswith("/static/v-")
        assert url.endswith(f"/{path}")
        answer = client.get(url)
        assert (answer.text, answer.headers["cache-control"]) == (content, YEAR)
        again = client.get(url, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.headers["cache-control"]) == (304, YEAR)


def test_url_is_that_below_a_root_path(start: Start) -> None:
    assert url_of(start(root_path="/shop")).startswith("/shop/static/v-")


def test_url_changes_with_any_content_and_with_nothing_else(start: Start, folder: Path) -> None:
    first = url_of(start())
    (folder / "style.css").write_text("a {}")
    assert url_of(start()) == first
    (folder / "fonts" / "a.woff2").write_text("other")
    second = url_of(start())
    (folder / "fonts" / "a.woff2").rename(folder / "a.woff2")
    assert len({first, second, url_of(start())}) == 3


def test_file_that_is_gone_meanwhile_is_left_out(start: Start, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = url_of(start())
    (folder / "4913").write_text("an editor's temporary file")
    is_file = Path.is_file

    def seen_and_gone(path: Path) -> bool:
        found = is_file(path)
        if path.name == "4913":
            path.unlink()
        return found

    monkeypatch.setattr(Path, "is_file", seen_and_gone)
    assert url_of(start()) == first


def test_other_url_of_a_file_is_not_kept(start: Start) -> None:
    client = start()
    for path in ("style.css", "v-000000000000/style.css"):
        answer = client.get(f"/static/{path}")
        assert (answer.text, answer.headers["cache-control"]) == ("a {}", ASK)


def test_file_that_changed_after_the_start_is_not_kept(start: Start, folder: Path) -> None:
    client = start()
    url = url_of(client)
    (folder / "style.css").write_text("b { color: red }")
    answer = client.get(url)
    assert (answer.text, answer.headers["cache-control"]) == ("b { color: red }", ASK)


def test_url_has_no_hash_with_debug(start: Start) -> None:
    client = start(debug=True)
    assert url_of(client) == "/static/style.css"
    assert client.get("/static/style.css").headers["cache-control"] == ASK


@pytest.mark.parametrize("path", ["", "no.css", "fonts", "../secret", "v-000000000000/%2e%2e/%2e%2e/secret"])
def test_what_is_no_file_of_the_folder_is_404(start: Start, folder: Path, path: str) -> None:
    (folder.parent / "secret").write_text("secret")
    client = start()
    for prefix in ("/static/", url_of(client).removesuffix("style.css")):
        assert client.get(f"{prefix}{path}").status_code == 404
