"""A visitor of a running server: it keeps cookies, and reports which worker responded."""

import http.client
import json
from dataclasses import dataclass
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import urlencode, urlsplit

from everycore.testing.waiting import DEADLINE


@dataclass(frozen=True)
class Answer:
    """One response.

    Attributes:
        status: The status code.
        headers: The headers by name. Of a header that is repeated, only the last one.
        text: The body, decoded as UTF-8.
        worker: The slot of the worker that responded, or None if the response has no `X-Worker`, as in production.
    """

    status: int
    headers: dict[str, str]
    text: str
    worker: int | None

    def json(self) -> Any:
        """Return the decoded JSON of the body.

        Raises:
            ValueError: The body is not JSON.
        """
        return json.loads(self.text)


class Visitor:
    """Sends requests over a keep-alive connection. It does not follow redirects.

    Args:
        url: The URL of the server, such as http://127.0.0.1:8000.
    """

    def __init__(self, url: str) -> None:
        self._host = urlsplit(url).netloc
        self._connections = [self._connect()]  # the last one is in use
        self._cookies: SimpleCookie = SimpleCookie()

    def get(self, path: str, *, fresh_connection: bool = False, headers: dict[str, str] | None = None) -> Answer:
        """Send a GET request.

        Args:
            path: The path, with the query.
            fresh_connection: Whether to open a new connection and leave the others open. The workers share connections
                evenly, so a dozen requests reach each worker.
            headers: Headers to send besides the cookies.

        Raises:
            OSError, http.client.HTTPException: The server sent no complete response.
        """
        return self._send("GET", path, None, headers or {}, fresh_connection)

    def post(
        self,
        path: str,
        data: dict[str, str] | bytes | None = None,
        *,
        fresh_connection: bool = False,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Send a form, or another body, in a POST request.

        Args:
            path: The path, with the query.
            data: The fields of the form, or a body whose type `headers` names.
            fresh_connection: Whether to open a new connection, as for `get`.
            headers: Headers to send besides the cookies.

        Raises:
            OSError, http.client.HTTPException: The server sent no complete response.
        """
        body = data if isinstance(data, bytes) else urlencode(data or {})
        form = {"Content-Type": "application/x-www-form-urlencoded", **(headers or {})}
        return self._send("POST", path, body, form, fresh_connection)

    def close(self) -> None:
        """Close all connections."""
        for connection in self._connections:
            connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._host, timeout=DEADLINE)

    def _send(self, method: str, path: str, body: str | bytes | None, headers: dict[str, str], fresh: bool) -> Answer:
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
