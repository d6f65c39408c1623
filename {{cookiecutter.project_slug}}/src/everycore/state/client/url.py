"""Parses and checks a Redis URL, and says which part of it may be logged.

A password can hold any character, and users paste it unencoded. Therefore no message repeats an unrecognized part of a
URL, and `shown` consists of the parts that cannot hold a password.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import parse_qsl

SINGLE = ("redis", "rediss", "unix")
SENTINEL, CLUSTER = ("redis+sentinel", "rediss+sentinel"), ("redis+cluster", "rediss+cluster")
FORMS = "redis://, unix://, redis+sentinel:// or redis+cluster://, or rediss for redis, which is TLS"
MAX_PORT = 65535

HOST = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?\])?(?::(?P<port>[0-9]{1,5}))?")

# The options of redis-py that work with this client. Others change the replies (decode_responses, encoding), send a
# command twice (retry_on_timeout, retry_on_error) or have no form as text (retry, credential_provider).
OPTIONS = frozenset(
    {"db", "username", "password", "client_name", "max_connections", "timeout", "health_check_interval"}
    | {"socket_timeout", "socket_connect_timeout", "socket_keepalive", "socket_read_size", "protocol", "ssl"}
    | {"ssl_keyfile", "ssl_certfile", "ssl_cert_reqs", "ssl_ca_certs", "ssl_ca_data", "ssl_ca_path", "ssl_ciphers"}
    | {"ssl_check_hostname", "ssl_password", "ssl_min_version"}
)
ALLOWED_VALUES = {"ssl": "true"}  # redis-py reads any text as true, even "false"
FILE_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
SENTINEL_OPTIONS = frozenset({"sentinel_username", "sentinel_password"})
SECRET_OPTIONS = frozenset({"username", "password", "ssl_password"}) | SENTINEL_OPTIONS


@dataclass(frozen=True)
class RedisUrl:
    """The parts of a URL: `user` is "name:password", encoded; `hosts` is "host:port,host:port"."""

    scheme: str
    user: str
    hosts: str
    path: str
    query: str

    @property
    def shown(self) -> str:
        """The URL without user, password and options, for logs and errors."""
        return f"{self.scheme}://{self.hosts}{self.path}"

    @property
    def has_secret_options(self) -> bool:
        """Whether a message about an option could repeat a password, because an unencoded & splits it in two."""
        return any(name in SECRET_OPTIONS for name, _ in parse_qsl(self.query, keep_blank_values=True))

    @property
    def unreadable_file(self) -> str | None:
        """The TLS file that cannot be read, and the reason. The error of a connection names no file."""
        for name, path in parse_qsl(self.query):
            if name in FILE_OPTIONS:
                try:
                    Path(path).read_bytes()
                except OSError as error:
                    named = name if self.has_secret_options else f"{name}={path}"
                    return f"the Redis URL names a file that cannot be read: {named} ({error.strerror})"
        return None

    def __repr__(self) -> str:
        return f"<RedisUrl {self.shown}>"


@lru_cache(1)  # the settings parse it before the fork, and each worker again, which would take 0.1 MiB
def parse(url: str) -> RedisUrl:
    """Parse a Redis URL.

    Raises:
        ValueError: The URL cannot be used. The message repeats no part of a password.
    """
    scheme, found, rest = url.partition("://")
    if not found or scheme not in (*SINGLE, *SENTINEL, *CLUSTER):
        raise ValueError(f"a Redis URL must begin with {FORMS}")
    if not rest.isascii() or not rest.isprintable() or " " in rest:
        raise ValueError("a Redis URL must be ASCII without spaces; percent-encode other characters (a space is %20)")
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    path, _, query = rest.removeprefix(authority).partition("?")
    user, _, hosts = authority.rpartition("@")
    if re.search("[@#]", path + query) or re.search(r"[][]", user):
        raise ValueError(
            "the Redis URL has one of / ? # @ [ ] in a wrong place; in a user name, a password or an option use %2F "
            "%3F %23 %40 %5B %5D"
        )
    parsed = RedisUrl(scheme, user, hosts, path, query)
    _refuse_bad_hosts(parsed)
    _refuse_bad_path(parsed)
    _refuse_bad_options(parsed)
    return parsed


def _refuse_bad_hosts(url: RedisUrl) -> None:
    if url.scheme == "unix":
        if url.hosts or not url.path.strip("/"):
            raise ValueError("a unix:// URL must have a path and no host: unix:///path/to/redis.sock")
        return
    several = url.scheme not in SINGLE
    addresses = url.hosts.split(",") if several else [url.hosts]
    for address in addresses:
        if several and address.partition(":")[0] == "":
            raise ValueError(f"a {url.scheme}:// URL must list its hosts: {url.scheme}://host:port,host:port")
        match = HOST.fullmatch(address)
        if not match or int(match["port"] or 0) > MAX_PORT:
            raise ValueError(
                f"a {url.scheme}:// URL must name host or host:port, with a port up to {MAX_PORT}, and an @ after "
                "user:password"
            )


def _refuse_bad_path(url: RedisUrl) -> None:
    if url.scheme == "unix":
        return
    service, _, db = url.path.removeprefix("/").partition("/")
    if url.scheme not in SENTINEL:
        db = url.path.strip("/")
    elif not service:
        raise ValueError(f"a {url.scheme}:// URL must name its service: {url.scheme}://host:26379/mymaster/0")
    if not re.fullmatch("[0-9]*", db):
        raise ValueError(f"the db of a {url.scheme}:// URL must be a number")


def _refuse_bad_options(url: RedisUrl) -> None:
    try:
        options = parse_qsl(url.query, keep_blank_values=True, strict_parsing=bool(url.query))
    except ValueError:
        raise ValueError("the options of a Redis URL must be name=value, separated by &") from None
    known = OPTIONS | SENTINEL_OPTIONS if url.scheme in SENTINEL else OPTIONS
    for name, value in options:
        if name not in known or value != ALLOWED_VALUES.get(name, value):
            named = "" if url.has_secret_options else f": {name}={value}" if name in ALLOWED_VALUES else f": {name}"
            raise ValueError(f"the Redis URL has an option that cannot be used{named}")
