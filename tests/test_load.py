"""The benchmarks' load generator counts every failure as what it is, against servers that misbehave."""

import asyncio
import itertools
import socket
import struct
import time
from contextlib import asynccontextmanager

import pytest

from benchmarks import http1, load


def answer(status="200 OK", body="ok", *headers):
    return "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", body]).encode()


OK = answer()
RESET, HANG_UP, SILENCE = "reset", "hang up", "silence"


@asynccontextmanager
async def misbehaving(*script):
    """The url of a server that meets the nth request of a connection with the nth of `script`, then with the last.

    Bytes are sent; a connection that was sent them in a tuple is closed after them, without a word.
    """

    async def serve(reader, writer):
        try:
            for step in itertools.chain(script, itertools.repeat(script[-1])):
                await reader.readuntil(b"\r\n\r\n")
                if step == RESET:
                    at_once = struct.pack("ii", 1, 0)  # on, 0 seconds: a close is a reset
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
                if step in (RESET, HANG_UP):
                    break
                if step != SILENCE:
                    writer.writelines([step] if isinstance(step, bytes) else step)
                if isinstance(step, tuple):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client left
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def seen(*script, connections=1, **options):
    async def main():
        async with misbehaving(*script) as url:
            return await load.run(url, "/", connections, **options)

    return asyncio.run(main())


@pytest.mark.parametrize("end", [RESET, HANG_UP, (OK[:-1],)], ids=["reset", "hang up", "half an answer"])
def test_connection_that_ends_counts_by_whether_it_was_reused(end):
    assert seen(OK, end, requests=10).outcomes == {load.OK: 5, load.RESET_ON_REUSED: 5}
    assert seen(end, requests=4).outcomes == {load.RESET_ON_FRESH: 4}
    assert seen(OK, end, requests=4, keep_alive=False).outcomes == {load.OK: 4}


def test_port_without_a_listener_counts_as_refused():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        result = asyncio.run(load.run(f"http://127.0.0.1:{bound.getsockname()[1]}", "/", 1, requests=3))
    assert result.outcomes == {load.REFUSED: 3}
    assert result.seconds >= 3 * load.PAUSE_AFTER_REFUSAL


def test_other_status_is_counted_and_keeps_the_connection():
    result = seen(OK, answer("503 Service Unavailable"), OK, RESET, requests=4)
    assert result.outcomes == {load.OK: 2, "http 503": 1, load.RESET_ON_REUSED: 1}
    assert result.failures("http 503") == {load.RESET_ON_REUSED: 1}


def test_no_answer_in_time_counts_as_timeout():
    result = seen(SILENCE, requests=2, timeout=0.05)
    assert result.outcomes == {load.TIMED_OUT: 2}
    assert min(result.latencies(load.TIMED_OUT)) >= 0.05


def test_announced_end_of_a_connection_fails_nothing():
    result = seen((answer("200 OK", "ok", "Connection: close"),), requests=5)
    assert (result.outcomes, result.closed_idle) == ({load.OK: 5}, 0)


def test_connection_closed_before_a_request_is_no_failure():
    result = seen((OK,), requests=5)
    assert (result.outcomes, result.closed_idle) == ({load.OK: 5}, 4)


def test_requests_are_counted_per_worker_and_connection():
    result = seen(
        answer(body="7"),
        answer(body="7"),
        (
            answer(
                body="8",
            ),
        ),
        requests=6,
    )
    assert (result.workers, result.connections) == ({"7": 4, "8": 2}, {"7": 2})


def test_all_connections_together_send_the_requested_number():
    assert seen(OK, connections=8, requests=20).outcomes == {load.OK: 20}


def test_each_request_takes_the_next_cookie_and_joins_chunks():
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n12\r\n1\r\n3\r\n0\r\n\r\n"
    assert seen(chunked, requests=2, cookies=["a=1", "b=2"]).workers == {"123": 2}


def test_background_load_ends_only_when_it_is_told_to():
    def use(url):
        with load.Background(url, "/", 2, seconds=60) as background:
            assert background.result.samples
        return background.stop()

    async def main():
        async with misbehaving(OK, RESET) as url:
            return await asyncio.to_thread(use, url)

    began = time.monotonic()
    result = asyncio.run(main())
    assert set(result.outcomes) == {load.OK, load.RESET_ON_REUSED}
    assert time.monotonic() - began < 30


def test_a_single_request_gives_its_cookie_or_an_os_error():
    async def fetch(*script):
        async with misbehaving(*script) as url:
            return await asyncio.to_thread(http1.fetch, url, "/")

    assert asyncio.run(fetch(answer("200 OK", "ok", "Set-Cookie: session=1; Path=/"))).cookie == "session=1"
    for end in (RESET, HANG_UP):
        with pytest.raises(OSError):
            asyncio.run(fetch(end))
