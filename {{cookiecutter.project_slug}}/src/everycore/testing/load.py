"""Load on a running server. Every outcome is counted."""

import http.client
import threading
from collections import Counter
from urllib.parse import urlsplit

from everycore.testing.waiting import DEADLINE


class Load:
    """Clients in threads that send GET requests until `stop`.

    Args:
        url: The URL of the server, such as http://127.0.0.1:8000.
        path: The path to request.
        clients: Number of threads.
        keep_alive: Whether a client reuses its connection. If not, it connects for each request.

    Attributes:
        seen: Number of requests by outcome. The outcomes are "ok", the status of any other response, "refused",
            "timeout", "reset on fresh" and "reset on reused" (connections). "sent" counts all requests.
    """

    def __init__(self, url: str, path: str = "/", clients: int = 4, keep_alive: bool = False) -> None:
        self.host = urlsplit(url).netloc
        self.path = path
        self.keep_alive = keep_alive
        self.seen: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> Counter[str]:
        """End the load and return the number of requests by outcome."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        return self.seen

    def _run(self) -> None:
        connection = http.client.HTTPConnection(self.host, timeout=DEADLINE)
        while not self._stopping.is_set():
            self._count("sent")
            self._count(self._send(connection))
            if not self.keep_alive:
                connection.close()
        connection.close()

    def _count(self, outcome: str) -> None:
        with (
            self._lock
        ):  # `+=` on a Counter calls Python code if the key is new, so another thread may count in between
            self.seen[outcome] += 1

    def _send(self, connection: http.client.HTTPConnection) -> str:
        fresh = connection.sock is None
        try:
            connection.request("GET", self.path)
            response = connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            if isinstance(error, ConnectionRefusedError):
                return "refused"
            if isinstance(error, TimeoutError):
                return "timeout"
            return "reset on fresh" if fresh else "reset on reused"
        return "ok" if response.status == http.HTTPStatus.OK else str(response.status)
