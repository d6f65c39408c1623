"""One HTTP/1.1 client connection of our own, which tells apart how a request can fail."""

import asyncio
import http.client
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answer:
    """Header names are lower case; of several cookies set at once the last is kept."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def cookie(self) -> str | None:
        """What to send back of the cookie that was set: "name=value"."""
        return self.headers["set-cookie"].partition(";")[0] if "set-cookie" in self.headers else None


class BrokenError(Exception):
    """The connection ended before the whole answer was there."""


class Connection:
    """Kept alive over requests until the server, or the network, ends it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self._reader, self._writer, self._host = reader, writer, host
        self.requests = 0
        self.closing = False  # the server said so

    @classmethod
    async def open(cls, url: str) -> Self:
        """Connect. Raises OSError, ConnectionRefusedError among them."""
        target = urlsplit(url)
        reader, writer = await asyncio.open_connection(target.hostname, target.port)
        return cls(reader, writer, target.netloc)

    async def closed_while_idle(self) -> bool:
        """Whether the server has closed it, as far as a careful client can know before it sends."""
        for _ in range(2):  # once for the event loop to look at the socket, once to hear what it saw
            await asyncio.sleep(0)
        return self._reader.at_eof() or self._reader.exception() is not None or self._writer.is_closing()

    async def get(self, path: str, cookie: str | None = None, headers: Mapping[str, str] | None = None) -> Answer:
        """Raises BrokenError."""
        lines = [f"GET {path} HTTP/1.1", f"Host: {self._host}"]
        lines += [f"Cookie: {cookie}"] if cookie else []
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        try:
            self._writer.write("\r\n".join([*lines, "", ""]).encode())
            head = await self._reader.readuntil(b"\r\n\r\n")
            status_line, *fields = head.decode("latin-1").split("\r\n")
            found = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
            body = await self._body(found)
        except (asyncio.IncompleteReadError, OSError) as error:
            raise BrokenError(str(error)) from error
        self.requests += 1
        self.closing = found.get("connection", "").lower() == "close"
        return Answer(int(status_line.split()[1]), found, body)

    async def _body(self, headers: Mapping[str, str]) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            return await self._reader.readexactly(int(headers.get("content-length", "0")))
        body = b""
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            body += (await self._reader.readexactly(size + 2))[:-2]
        await self._reader.readexactly(2)
        return body

    def close(self) -> None:
        self._writer.close()


def fetch(url: str, path: str, cookie: str | None = None, timeout: float = 10.0) -> Answer:
    """One request on a connection of its own, without asyncio. Raises OSError."""
    target = urlsplit(url)
    connection = http.client.HTTPConnection(str(target.hostname), target.port, timeout=timeout)
    try:
        connection.request("GET", path, headers={"Cookie": cookie} if cookie else {})
        response = connection.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, headers, response.read())
    except http.client.HTTPException as error:
        raise ConnectionError(str(error)) from error
    finally:
        connection.close()
