"""Every setting, and that `.env.example` lists exactly these."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from everycore.server import ServerSettings
from everycore.web import AppSettings, SettingsError
from places import TEMPLATE
from sample.app import Settings

KEY = "a-key-of-more-than-thirty-two-characters"
PROJECT = TEMPLATE


def read(environ: dict[str, str]) -> Any:
    """Return the settings of the app and of the server as one object."""
    made: list[Any] = []
    faults: list[str] = []
    for kind in (ServerSettings, AppSettings):
        try:
            made.append(kind.from_environ(environ))
        except SettingsError as error:
            faults.extend(error.args)
    if faults:
        raise SettingsError(*faults)
    server, app = made
    return SimpleNamespace(**{**vars(server), **vars(app)}, production=app.production, shown=f"{server} {app}")


def test_app_env_by_default_is_production_and_needs_a_key() -> None:
    with pytest.raises(SettingsError, match=r"SECRET_KEY is not set.*python3 -c 'import secrets"):
        read({})
    assert read({"SECRET_KEY": KEY}).production


@pytest.mark.parametrize("key", ["short", f"{KEY},short"])
def test_secret_key_in_production_must_be_long(key: str) -> None:
    with pytest.raises(SettingsError, match="fewer than 32 characters"):
        read({"SECRET_KEY": key})


def test_secret_key_overrides_secret_key_file(tmp_path: Path) -> None:
    file = tmp_path / "secret_key"
    file.write_text(f"{KEY},{KEY}2\n")
    assert read({"SECRET_KEY_FILE": str(file)}).secret_keys == (KEY, f"{KEY}2")
    assert read({"SECRET_KEY": KEY, "SECRET_KEY_FILE": "/nowhere"}).secret_keys == (KEY,)


@pytest.mark.parametrize(("content", "message"), [(None, "cannot be read"), ("", "is not set"), ("short", "fewer")])
def test_secret_key_file_without_a_good_key_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "secret_key"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SettingsError, match=message):
        read({"SECRET_KEY_FILE": str(file)})


@pytest.mark.parametrize("text", [f"{KEY}, {KEY}2", f"  {KEY} ,\t{KEY}2 ", f"{KEY}\n{KEY}2\n", f"{KEY}\r\n{KEY}2,\r\n"])
def test_secret_keys_with_spaces_and_lines_are_stripped(tmp_path: Path, text: str) -> None:
    file = tmp_path / "secret_key"
    file.write_bytes(text.encode())
    for env in ({"SECRET_KEY": text}, {"SECRET_KEY_FILE": str(file)}):
        assert read(env).secret_keys == (KEY, f"{KEY}2")


@pytest.mark.parametrize("app_env", ["production", "development"])
@pytest.mark.parametrize("text", [f'"{KEY}"', f"'{KEY}'", f"{KEY}, '{KEY}2'", f'{KEY}"'])
def test_secret_key_in_quotes_is_refused_and_not_shown(app_env: str, text: str) -> None:
    for name in ("SECRET_KEY", "OPS_TOKEN"):
        with pytest.raises(SettingsError, match=f"{name} begins or ends with a quotation mark") as caught:
            read({"APP_ENV": app_env, "SECRET_KEY": KEY, name: text})
        assert KEY[:8] not in str(caught.value)


def test_secret_key_file_of_bytes_is_refused_and_not_shown(tmp_path: Path) -> None:
    file = tmp_path / "secret_key"
    file.write_bytes(b"\xff" + KEY.encode())
    with pytest.raises(SettingsError, match="is not text in UTF-8") as caught:
        read({"SECRET_KEY_FILE": str(file)})
    assert len(caught.value.args) == 1
    assert KEY[:8] not in str(caught.value)


def test_read_collects_every_fault() -> None:
    bad = {"WEB_CONCURRENCY": "x", "LINGER": "x", "REDIS_URL": "app:hunter2@host", "APP_ENV": "x", "TLS_KEY": "x"}
    bad["TLS_CLIENT_CA"] = "x"
    with pytest.raises(SettingsError) as caught:
        read(bad)
    assert len(caught.value.args) == len(bad)
    assert all(any(name in fault for fault in caught.value.args) for name in bad)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("APP_ENV", "staging"),
        ("WEB_CONCURRENCY", "0"),
        ("WEB_CONCURRENCY", "many"),
        ("PORT", "0"),
        ("PORT", "65536"),
        ("PORT", "http"),
        ("GRACEFUL_TIMEOUT", "-1"),
        ("GRACEFUL_TIMEOUT", "nan"),
        ("REDIS_TIMEOUT", "inf"),
        ("ACCESS_LOG", "yes"),
        ("LOG_LEVEL", "loud"),
        ("MAX_BODY", "1M"),
        ("HEADER_TIMEOUT", "never"),
        ("WRITE_TIMEOUT", "-1"),
        ("KEEP_ALIVE", "0"),
        ("PROBE_PATHS", "healthz"),
        ("MAX_IN_FLIGHT", "-1"),
        ("WEBSOCKET_MAX_SIZE", "0"),
        ("TLS_MIN_VERSION", "1.1"),
        ("ALLOWED_HOSTS", "shop.com:8000"),
        ("ALLOWED_HOSTS", "shop.*"),
        ("ALLOWED_HOSTS", ","),
        ("TRUSTED_ORIGINS", "login.example"),
        ("TRUSTED_ORIGINS", "https://login.example/"),
        ("TRUSTED_ORIGINS", "null"),
        ("FORWARDED_ALLOW_IPS", "a;b"),
        ("FORWARDED_ALLOW_IPS", "10.0.0.1,"),
        ("FORWARDED_ALLOW_IPS", "10.0.0.1/8"),
        ("FORWARDED_ALLOW_IPS", "proxy.example"),
        ("ROOT_PATH", "shop"),
        ("ROOT_PATH", "//shop"),
        ("ROOT_PATH", "/a b"),
        ("KEY_PREFIX", "a{b}"),
        ("SESSION_COOKIE", "a b"),
        ("SESSION_PATH", "shop"),
        ("SESSION_PATH", "/; Secure"),
        ("SESSION_DOMAIN", "shop.com; Secure"),
        ("SESSION_SAMESITE", "no"),
    ],
)
def test_bad_value_is_named_with_what_is_expected(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=rf"{name} is '{value}'; it must be"):
        read({"SECRET_KEY": KEY, name: value})


def test_empty_value_is_the_default() -> None:
    assert read({"SECRET_KEY": KEY, "LINGER": "", "WEB_CONCURRENCY": ""}).linger == 5.0


@pytest.mark.parametrize(
    ("environ", "linger"),
    [
        ({}, 5),
        ({"KEEP_ALIVE": "2"}, 2),
        ({"KEEP_ALIVE": "620"}, 15),
        ({"KEEP_ALIVE": "620", "GRACEFUL_TIMEOUT": "100"}, 50),
        ({"KEEP_ALIVE": "620", "LINGER": "7"}, 7),
    ],
)
def test_linger_follows_keep_alive_within_a_drain(environ: dict[str, str], linger: float) -> None:
    """An idle connection stays open as long as KEEP_ALIVE, but at most for half of the drain."""
    assert read({"SECRET_KEY": KEY, **environ}).linger == linger


@pytest.mark.parametrize(
    ("environ", "bind"),
    [
        ({}, "127.0.0.1:8000"),
        ({"PORT": "5000"}, "0.0.0.0:5000"),
        ({"PORT": "5000", "BIND": "unix:/run/app.sock"}, "unix:/run/app.sock"),
        ({"PORT": "5000", "BIND": ""}, "0.0.0.0:5000"),
    ],
)
def test_port_counts_where_bind_is_not_set(environ: dict[str, str], bind: str) -> None:
    assert read({"SECRET_KEY": KEY, **environ}).bind == (bind,)


def test_secrets_are_not_in_the_repr() -> None:
    settings = read({"SECRET_KEY": KEY, "REDIS_URL": "redis://app:hunter2@host"})
    assert KEY not in settings.shown
    assert "hunter2" not in settings.shown


def test_ops_token_in_production_must_be_long() -> None:
    with pytest.raises(SettingsError, match="OPS_TOKEN has fewer than 16 characters"):
        read({"SECRET_KEY": KEY, "OPS_TOKEN": "hunter2"})
    settings = read({"SECRET_KEY": KEY, "OPS_TOKEN": f"{KEY}\n"})  # a file ends with a newline
    assert settings.ops_token == KEY
    assert KEY not in settings.shown
    assert read({"APP_ENV": "development", "OPS_TOKEN": "short"}).ops_token


def test_key_prefix_and_cookie_default_to_the_package() -> None:
    named = Settings.from_environ({"SECRET_KEY": KEY})  # by the package of the class
    assert (named.key_prefix, named.session_cookie) == ("sample", "sample-session")
    named = Settings.for_app("acme_shop.app:create_app", {"SECRET_KEY": KEY})
    assert (named.key_prefix, named.session_cookie) == ("acme-shop", "acme-shop-session")
    settings = read({"SECRET_KEY": KEY, "KEY_PREFIX": "shop", "SESSION_SAMESITE": "None"})
    assert (settings.key_prefix, settings.session_cookie, settings.session_samesite) == ("shop", "shop-session", "none")
    assert read({"SECRET_KEY": KEY, "SESSION_COOKIE": "id"}).session_cookie == "id"


def test_allowed_hosts_are_separated_by_commas() -> None:
    hosts = ("shop.com", "*.shop.com", "[::1]")
    assert read({"SECRET_KEY": KEY, "ALLOWED_HOSTS": "shop.com, *.shop.com,[::1]"}).allowed_hosts == hosts


def test_trusted_origins_are_separated_by_commas() -> None:
    origins = ("https://login.example", "http://[::1]:8000")
    assert read({"SECRET_KEY": KEY, "TRUSTED_ORIGINS": "https://Login.example, http://[::1]:8000"}).trusted_origins == (
        origins
    )


def test_lists_ignore_spaces() -> None:
    settings = read({"SECRET_KEY": KEY, "BIND": "0.0.0.0:80, [::]:80", "FORWARDED_ALLOW_IPS": "unix, 10.0.0.0/8 ,*"})
    assert settings.bind == ("0.0.0.0:80", "[::]:80")
    assert settings.forwarded_allow_ips == ("unix", "10.0.0.0/8", "*")


@pytest.mark.parametrize(("text", "path"), [("/shop", "/shop"), ("/shop/eu/", "/shop/eu"), ("/", "")])
def test_root_path_drops_the_last_slash(text: str, path: str) -> None:
    assert read({"SECRET_KEY": KEY, "ROOT_PATH": text}).root_path == path


def test_example_lists_every_setting() -> None:
    listed = set(re.findall(r"^#? ?([A-Z_]+)(?:=|, of everycore_demo)", (PROJECT / ".env.example").read_text(), re.M))
    assert listed == {*ServerSettings.names(), *AppSettings.names(), "DEMO", "GREETING"}
