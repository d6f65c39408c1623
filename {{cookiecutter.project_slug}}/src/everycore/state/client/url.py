"""The Redis URL as text: what may stand in it, and what of it may be shown. Knows no client.

A password can hold any character, and people paste it unencoded. So no message repeats a piece of a URL that was not
recognized, and `shown` is made of the parts that cannot hold a password.
"""

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl

SINGLE, SENTINEL, CLUSTER = ("redis", "rediss", "unix"), "redis+sentinel", "redis+cluster"
FORMS = "redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://"
MAX_PORT = 65535

HOST = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?\])?(?::(?P<port>[0-9]{1,5}))?")

# Those of redis-py's options that go with this client. Others change what it reads (decode_responses, encoding),
# send a command twice (retry_on_timeout, retry_on_error) or cannot be given as text (retry, credential_provider).
OPTIONS = frozenset(
    {"db", "username", "password", "client_name", "max_connections", "timeout", "health_check_interval"}
    | {"socket_timeout", "socket_connect_timeout", "socket_keepalive", "socket_read_size", "protocol", "ssl"}
    | {"ssl_keyfile", "ssl_certfile", "ssl_cert_reqs", "ssl_ca_certs", "ssl_ca_data", "ssl_ca_path", "ssl_ciphers"}
    | {"ssl_check_hostname", "ssl_password", "ssl_min_version"}
)
ALLOWED_VALUES = {"ssl": "true"}  # redis-py takes any text for yes, "false" too
SECRET_OPTIONS = frozenset({"username", "password", "ssl_password"})


@dataclass(frozen=True)
class RedisUrl:
    """A URL that was read. user: "name:password", encoded. hosts: "host:port,host:port". query: of options."""

    scheme: str
    user: str
    hosts: str
    path: str
    query: str

    @property
    def shown(self) -> str:
        """For logs and errors: without name, password and options."""
        return f"{self.scheme}://{self.hosts}{self.path}"

    @property
    def has_secret_options(self) -> bool:
        """Whether what is said of an option may repeat a password: an unencoded & in it begins another option."""
        return any(name in SECRET_OPTIONS for name, _ in parse_qsl(self.query, keep_blank_values=True))

    def __repr__(self) -> str:
        return f"<RedisUrl {self.shown}>"


def parse(url: str) -> RedisUrl:
    """Read `url`. Raises ValueError, whose message repeats nothing that may be a part of a password."""
    scheme, found, rest = url.partition("://")
    if not found or scheme not in (*SINGLE, SENTINEL, CLUSTER):
        raise ValueError(f"a Redis URL begins with {FORMS}")
    if not rest.isascii() or not rest.isprintable() or " " in rest:
        raise ValueError("a Redis URL has ASCII letters and no spaces: percent-encode the others (a space is %20)")
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    path, _, query = rest.removeprefix(authority).partition("?")
    user, _, hosts = authority.rpartition("@")
    if re.search("[@#]", path + query) or re.search(r"[][]", user):
        raise ValueError(
            "the Redis URL has one of / ? # @ [ ] where it cannot stand: in a name, a password or an option they are "
            "%2F %3F %23 %40 %5B %5D"
        )
    parsed = RedisUrl(scheme, user, hosts, path, query)
    _refuse_bad_hosts(parsed)
    _refuse_bad_path(parsed)
    _refuse_bad_options(parsed)
    return parsed


def _refuse_bad_hosts(url: RedisUrl) -> None:
    if url.scheme == "unix":
        if url.hosts or not url.path.strip("/"):
            raise ValueError("a unix:// URL has a path and no host: unix:///path/to/redis.sock")
        return
    several = url.scheme not in SINGLE
    addresses = url.hosts.split(",") if several else [url.hosts]
    for address in addresses:
        if several and address.partition(":")[0] == "":
            raise ValueError(f"a {url.scheme}:// URL lists its hosts: {url.scheme}://host:port,host:port")
        match = HOST.fullmatch(address)
        if not match or int(match["port"] or 0) > MAX_PORT:
            raise ValueError(
                f"a {url.scheme}:// URL names host or host:port, with a port up to {MAX_PORT}; "
                "behind name:password stands an @"
            )


def _refuse_bad_path(url: RedisUrl) -> None:
    if url.scheme == "unix":
        return
    service, _, db = url.path.removeprefix("/").partition("/")
    if url.scheme != SENTINEL:
        db = url.path.strip("/")
    elif not service:
        raise ValueError("a redis+sentinel:// URL names its service: redis+sentinel://host:26379/mymaster/0")
    if not re.fullmatch("[0-9]*", db):
        raise ValueError(f"the db of a {url.scheme}:// URL is a number")


def _refuse_bad_options(url: RedisUrl) -> None:
    try:
        options = parse_qsl(url.query, keep_blank_values=True, strict_parsing=bool(url.query))
    except ValueError:
        raise ValueError("the options of a Redis URL are of the form name=value, with & between them") from None
    for name, value in options:
        if name not in OPTIONS or value != ALLOWED_VALUES.get(name, value):
            named = "" if url.has_secret_options else f": {name}={value}" if name in ALLOWED_VALUES else f": {name}"
            raise ValueError(f"the Redis URL has an option that cannot be used{named}")
