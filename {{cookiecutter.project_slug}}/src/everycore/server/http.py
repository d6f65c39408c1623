"""The HTTP protocol of the workers, and what all connections of a worker share.

The client behind the proxies, the path under which a proxy serves the app, and the id of a request are put into the
scope here. A middleware for each would add a call to every request.
"""

import asyncio
import ssl
import sys
from collections.abc import Collection, Sequence
from time import monotonic_ns, time
from typing import Any
from urllib.parse import unquote

import httptools
import uvicorn
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.server import ServerState

from everycore.server.logging import write_access_line
from everycore.server.outbox import Outbox
from everycore.server.proxies import LOCAL, ForwardedHeaders, add_root_path, read_wait
from everycore.server.request_ids import HEADER as REQUEST_ID
from everycore.server.request_ids import choose_request_id, set_request_id
from everycore.server.request_protocol import RequestProtocol
from everycore.server.request_stats import PROXY_QUEUE, SHED_REQUESTS, RequestStats
from everycore.server.response_cycle import MAX_JOINED, ResponseCycle, refuse

FORWARDED = (b"x-forwarded-for", b"x-forwarded-proto")
EXPECT, QUEUED_SINCE = b"expect", b"x-request-start"
NOTED = frozenset((EXPECT, QUEUED_SINCE, REQUEST_ID, *FORWARDED))  # fields that the protocol itself needs


class HttpConfig(uvicorn.Config):
    """uvicorn's configuration with this protocol, and what all connections of a worker share."""

    def __init__(
        self,
        app: Any,
        *,
        access_log: bool = False,
        forwarded_allow_ips: Sequence[str] = LOCAL,
        root_path: str = "",
        probe_paths: Collection[str] = (),
        max_in_flight: int = 0,
        max_streams: int = 0,
        tls_min_version: str = "1.2",
        **options: Any,
    ) -> None:
        """Choose what is the same for every app.

        Args:
            app: The ASGI app.
            access_log: Whether to write a log line for each request. It has status 0 if the client left before the
                response, and the time to the last byte that was written to the connection.
            forwarded_allow_ips: Trusted proxies, see `ForwardedHeaders`.
            root_path: Path under which a proxy serves the app, see `add_root_path`.
            probe_paths: Paths of which requests are not logged, and not refused because of `max_in_flight`.
            max_in_flight: Number of requests that are handled at once. Event streams and WebSockets do not count, and
                tasks that run after a response do. 0 for no limit.
            max_streams: Number of event streams that are open at once. 0 for no limit.
            tls_min_version: "1.2" or "1.3".
            options: More options of uvicorn.Config.
        """
        super().__init__(
            app,
            loop="uvloop",
            http=HttpProtocol,
            log_config=None,
            server_header=False,
            access_log=False,  # uvicorn's own costs more, and has neither the time nor the size
            proxy_headers=False,  # ForwardedHeaders is stricter
            workers=1,  # otherwise uvicorn reads WEB_CONCURRENCY, and fails at "auto"
            ssl_cert_reqs=ssl.CERT_REQUIRED if options.get("ssl_ca_certs") else ssl.CERT_NONE,
            **options,
        )
        self.logs_requests = access_log
        self.forwarded = ForwardedHeaders(forwarded_allow_ips)
        self.prefix = root_path
        self.probes = {*probe_paths, *(root_path + path for path in probe_paths)}
        self.stats = RequestStats()
        self.max_in_flight, self.max_streams = max_in_flight, max_streams
        self.streams = self.websockets = 0  # that are open
        self.outbox = Outbox()
        self._tls_min_version = ssl.TLSVersion[f"TLSv{tls_min_version.replace('.', '_')}"]
        self._default_fields: list[tuple[bytes, bytes]] = []
        self._default_lines = b"", False

    def load(self) -> None:
        """Load what uvicorn loads, and set the oldest version of TLS, which uvicorn has no option for."""
        super().load()
        self.scope_version = self.asgi_version
        if self.ssl is not None:
            self.ssl.minimum_version = self._tls_min_version

    def room(self, tasks: int) -> int:
        """Return how many more requests may be handled at once.

        Args:
            tasks: Number of the tasks of requests, event streams and WebSockets.
        """
        return self.max_in_flight - self.requests(tasks) if self.max_in_flight else sys.maxsize

    def requests(self, tasks: int) -> int:
        """Return how many of these tasks are of requests."""
        return tasks - self.streams - self.websockets

    def default_lines(self, fields: list[tuple[bytes, bytes]]) -> tuple[bytes, bool]:
        """Return the lines of the fields that every response has, and whether they have `Connection: close`.

        Args:
            fields: uvicorn's list, which it replaces once a second.
        """
        if fields is not self._default_fields:
            lines = b"".join(b"%b: %b\r\n" % field for field in fields)
            self._default_fields, self._default_lines = fields, (lines, (b"connection", b"close") in fields)
        return self._default_lines


class HttpProtocol(RequestProtocol):
    """The HTTP protocol of the workers."""

    config: HttpConfig

    def __init__(self, config: HttpConfig, server_state: ServerState, app_state: dict[str, Any]) -> None:
        super().__init__(config, server_state, app_state)
        self.outbox = config.outbox
        self.body_bytes = 0  # of all request bodies so far, so that request_timeouts.py can see progress
        # The request whose app was called last. `cycle` may be a later one, of a pipelined request.
        self.running: ResponseCycle | None = None
        self._noted: dict[bytes, bytes] = {}  # the last value of each field of NOTED
        self._unsent = b""  # of responses
        self._is_proxy = False  # whether the client is a trusted proxy

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Find out who the client is, and whether it is a proxy, once for all of its requests.

        uvicorn asks for the addresses of the transport's socket. That takes two more sockets in Python.
        """
        self.connections.add(self)
        self.transport, self.flow = transport, FlowControl(transport)
        own, peer = transport.get_extra_info("sockname"), transport.get_extra_info("peername")
        self.server = own[:2] if isinstance(own, tuple) else (own, None) if isinstance(own, str) else None
        self.client = peer[:2] if isinstance(peer, tuple) else None
        self.scheme = "https" if self.config.ssl else "http"
        self._is_proxy = self.config.forwarded.trusts(self.client, self.server)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the request that is running that its client is gone, and forget all requests.

        Each refers to this protocol. If it was not forgotten, only the garbage collector would free both.
        """
        cycle, self.running = self.running, None
        self.cycle = self.parser = None  # type: ignore[assignment]
        self.pipeline.clear()
        self.connections.discard(self)
        self.flow.resume_writing()
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.wake()
            self.on_cycle_end(cycle)

    def eof_received(self) -> None:
        """Send what waits before the event loop closes the connection, for a client that only sends no more."""
        self.flush()

    def on_message_begin(self) -> None:
        """Start with an empty head, and the scope that uvicorn makes."""
        self.url = b""
        self.headers = []
        self._noted = {}
        self.scope = {  # type: ignore[typeddict-item]
            "type": "http",
            "asgi": {"version": self.config.scope_version, "spec_version": "2.3"},
            "http_version": "1.1",
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,  # type: ignore[typeddict-item]
            "root_path": "",
            "headers": self.headers,
            "state": self.app_state.copy(),
        }

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a field of the head or of the trailers."""
        name = name.lower()
        self.headers.append((name, value))
        if name in NOTED:
            self._noted[name] = value

    def on_body(self, body: bytes) -> None:
        """Give a part of the body to the request, and read no more while the app has not taken 64 KiB."""
        super().on_body(body)
        self.body_bytes += len(body)
        cycle: Any = self.cycle
        if not (self.parser.should_upgrade() or cycle.response_complete):
            cycle.body += body
            if len(cycle.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            cycle.wake()

    def on_message_complete(self) -> None:
        """Tell the request that its body is complete."""
        cycle: Any = self.cycle
        if not (self.parser.should_upgrade() or cycle.response_complete):
            cycle.more_body = False
            cycle.wake()

    def start_request(self) -> None:
        """Call the app, now or after the responses to earlier requests of this connection. The head is complete."""
        scope: Any = self.scope
        parser, noted = self.parser, self._noted
        scope["method"] = parser.get_method().decode()
        version = parser.get_http_version()
        if version != "1.1":
            scope["http_version"] = version
        if parser.should_upgrade():
            return
        url = httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"] = url.path
        scope["query_string"] = url.query or b""
        self._complete(scope)
        if self._is_proxy and QUEUED_SINCE in noted:
            waited = read_wait(noted[QUEUED_SINCE], time())
            if waited is not None:
                self.config.stats.count_wait(PROXY_QUEUE, waited)
        earlier = self.cycle
        expects_continue = EXPECT in noted and noted[EXPECT].lower() == b"100-continue"
        keep_alive = version != "1.0" and parser.should_keep_alive()
        cycle: Any = ResponseCycle(self, scope, expects_continue, keep_alive)
        self.cycle = cycle
        app = self.app
        if (
            self.config.max_in_flight
            and self.config.room(len(self.tasks)) <= 0
            and scope["path"] not in self.config.probes
        ):
            self.config.stats.count(SHED_REQUESTS)
            app = refuse
        if earlier is None or earlier.response_complete:
            self._start_asgi_task(cycle, app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, app))

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self.running = cycle
        cycle.task = task = self.loop.create_task(cycle.run_asgi(app))
        self.tasks.add(task)

    def on_response_complete(self) -> None:
        """Start the next request that was pipelined, or wait KEEP_ALIVE seconds for one.

        One timer runs for many requests, because a new one for each would cost a percent of a small request.
        """
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self.idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self._close_if_idle)

    def _close_if_idle(self) -> None:
        self.timeout_keep_alive_task = None
        if self.idle_since is None or self.transport.is_closing():
            return
        left = self.idle_since + self.timeout_keep_alive - self.loop.time()
        if left <= 0:
            self.close()
        else:
            self.timeout_keep_alive_task = self.loop.call_later(left, self._close_if_idle)

    def on_cycle_end(self, cycle: ResponseCycle) -> None:
        """Send, count and log a response that is complete, or count and log a request whose client is gone."""
        scope, now, config, outbox = cycle.scope, monotonic_ns(), self.config, self.outbox
        elapsed = now - cycle.began
        if not outbox.may_wait(config.requests(len(self.tasks) - 1), now):
            outbox.send_all()
        config.stats.count_request(scope, cycle.status, cycle.time_to_stream or elapsed)
        if config.logs_requests and scope["path"] not in config.probes:
            agent = b""
            for name, value in scope["headers"]:
                if name == b"user-agent":
                    agent = value
            client = scope["client"]
            write_access_line(
                method=scope["method"],
                path=scope["path"],
                status=cycle.status,
                ms=elapsed / 1e6,
                client=client[0] if client else "-",
                request_id=cycle.request_id,
                sent=cycle.sent,
                user_agent=agent.decode("latin-1"),
            )

    def create_websocket(self) -> Any:
        """Return a new protocol of the WebSocket library that calls the app as this one does."""
        protocol = super().create_websocket()
        protocol.app = self._run_websocket
        return protocol

    def send_later(self, data: bytes) -> None:
        """Send a part of a response with what follows it, or in the next round of the event loop."""
        if self._unsent:
            self._unsent += data
        else:
            self._unsent = bytes(data)
            self.outbox.send_soon(self)

    def send(self, data: bytes) -> None:
        """Send a part of a response now, behind what has not been sent."""
        unsent, self._unsent = self._unsent, b""
        if not unsent:
            if data:  # asyncio's own event loop would retry an empty write forever
                self.transport.write(data)
        elif len(data) <= MAX_JOINED:
            self.transport.write(unsent + data)
        else:
            self.transport.writelines((unsent, data))

    def flush(self) -> None:
        """Send what has not been sent, unless the connection is closed: uvloop raises for that."""
        unsent, self._unsent = self._unsent, b""
        if unsent and not self.transport.is_closing():
            self.transport.write(unsent)

    def close(self) -> None:
        """Close the connection when all responses have been sent."""
        self.flush()
        self.transport.close()

    def shutdown(self) -> None:
        """Close the connection when its request is answered, or at once if it has none."""
        self.flush()
        super().shutdown()

    def _complete(self, scope: Any) -> None:
        """Put into a scope what uvicorn does not know: the client behind the proxies, the path, the id."""
        if self.config.prefix:
            add_root_path(scope, self.config.prefix)
        noted = self._noted
        if noted and self._is_proxy and not noted.keys().isdisjoint(FORWARDED):
            self.config.forwarded.apply(scope)
        scope["state"]["request_id"] = choose_request_id(noted.get(REQUEST_ID))

    async def _run_websocket(self, scope: Any, receive: Any, send: Any) -> None:
        """Call the app for a WebSocket."""
        self._complete(scope)
        identity = scope["state"]["request_id"]
        set_request_id(identity)

        async def send_with_id(message: Any) -> None:
            if message["type"] in ("websocket.accept", "websocket.http.response.start"):
                fields = [field for field in message.get("headers", ()) if field[0].lower() != REQUEST_ID]
                message = {**message, "headers": [*fields, (REQUEST_ID, identity.encode())]}
            await send(message)

        self.config.websockets += 1
        try:
            await self.app(scope, receive, send_with_id)
        finally:
            self.config.websockets -= 1
