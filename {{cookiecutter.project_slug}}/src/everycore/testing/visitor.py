"""One visitor of a running server: keeps cookies, and sees which worker answered."""

import http.client
import json
from dataclasses import dataclass
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import urlencode, urlsplit

from everycore.testing.waiting import DEADLINE


@dataclass(frozen=True)
class Answer:
    """One response. `worker` is the slot of the worker that answered, None where the app does not say."""

    status: int
    headers: dict[str, str]
    text: str
    worker: int | None

    def json(self) -> Any:
        """Return the body as JSON. Raises ValueError."""
        return json.loads(self.text)


class Visitor:
    """Sends requests over a kept-alive connection, and follows no redirect.

    Args:
        url: Of the server, such as http://127.0.0.1:8000.
    """

    def __init__(self, url: str) -> None:
        self._host = urlsplit(url).netloc
        self._connections = [self._connect()]  # the last one is in use
        self._cookies: SimpleCookie = SimpleCookie()

    def get(self, path: str, *, fresh_connection: bool = False, headers: dict[str, str] | None = None) -> Answer:
        """Send a GET.

        Args:
            path: And a query, if there is one.
            fresh_connection: Connect again, and leave the other connections open. The workers share connections evenly,
                so a dozen requests reach each of them.
            headers: Besides the cookies.
        """
        return self._send("GET", path, None, headers or {}, fresh_connection)

    def post(
        self,
        path: str,
        data: dict[str, str] | None = None,
        *,
        fresh_connection: bool = False,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Send a form."""
        form = {"Content-Type": "application/x-www-form-urlencoded", **(headers or {})}
        return self._send("POST", path, urlencode(data or {}), form, fresh_connection)

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._host, timeout=DEADLINE)

    def _send(self, method: str, path: str, body: str | None, headers: dict[str, str], fresh: bool) -> Answer:
        if fresh:
            self._connections.append(self._connect())
        if self._cookies:
            cookies = "; ".join(f"{name}={morsel.value}" for name, morsel in self._cookies.items())
            headers = {"Cookie": cookies, **headers}
        connection = self._connections[-1]
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        text = response.read().decode(errors="replace")
        for header in response.headers.get_all("Set-Cookie", ()):
            self._cookies.load(header)
        worker = response.getheader("X-Worker")
        return Answer(response.status, dict(response.getheaders()), text, int(worker) if worker else None)
