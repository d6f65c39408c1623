"""No part of a password is shown, whatever the URL looks like, and whoever says what is wrong with it."""

import asyncio
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from everycore.state.client.connect import connect, connection_error
from everycore.state.client.url import parse

WITHIN = 2.0  # seconds; nothing waits for it

# "{}" is the password, as it is or encoded. Nobody listens at port 1.
FORMS = [
    "app:{}@127.0.0.1:1",
    "{}@127.0.0.1:1",
    "redis:/app:{}@127.0.0.1:1/0",
    "redis:app:{}@127.0.0.1:1/0",
    "http://app:{}@127.0.0.1:1",
    "redis://:{}@127.0.0.1:1/0",
    "redis://app:{}@127.0.0.1:1/0",
    "redis://app:{}@127.0.0.1:port",
    "redis://app:{}@127.0.0.1:1/cache",
    "redis://app:{}@127.0.0.1:1?db=x",
    "redis://app:{}@127.0.0.1:1?nonsense=1",
    "rediss://app:{}@127.0.0.1:1?ssl_cert_reqs=perhaps",
    "redis://127.0.0.1:1/0?username=app&password={}",
    "redis://127.0.0.1:1/0?password={}&ssl=false",
    "rediss://127.0.0.1:1/0?password={}",
    "unix://app:{}@/nowhere/redis.sock?db=1",
    "redis+sentinel://app:{}@127.0.0.1:1,127.0.0.1:2/service/0",
    "redis+sentinel://app:{}@127.0.0.1:1/",
    "redis+sentinel://127.0.0.1:1/service?sentinel_password={}",
    "rediss+sentinel://127.0.0.1:1/service?sentinel_username=app&sentinel_password={}",
    "redis+cluster://app:{}@127.0.0.1:1,127.0.0.1:2",
    "redis+cluster://app:{}@127.0.0.1:1/3",
    "redis+cluster://127.0.0.1:1?password={}",
]


def said(url: str) -> str:
    """All that is said of it: by `parse`, `connect`, the first command, and where it is shown."""
    try:
        parts = parse(url)
    except ValueError as error:
        return str(error)
    try:
        connect(url, WITHIN)
    except ValueError as error:
        return f"{error} {parts.shown} {parts!r}"
    return f"{asyncio.run(connection_error(url, WITHIN))} {parts.shown} {parts!r}"


# Passwords that share nothing with any word, and between them meet each rule: what is said of them is said of all.
INNOCENT = {form: "".join(said(form.format(text)) for text in ("~~", "~/~", "~ ~", "~[~", "~&~=~")) for form in FORMS}


def shared(form: str, written: str, password: str) -> set[str]:
    """Pieces of three characters and more of the password that show."""
    text = said(form.format(written))
    pieces = {secret[at : at + 3] for secret in (written, password) for at in range(len(secret) - 2)}
    return {piece for piece in pieces if piece in text and piece not in INNOCENT[form]}


CHARACTERS = "abcXYZ019!#$%&'()*+,-./:;<=>?@[]^_{|}~ \u00fc\uff05\uff0f\n"
PASSWORDS = st.text(st.sampled_from(CHARACTERS), min_size=3, max_size=30)


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None)
@given(PASSWORDS)
@example("secret/with?all#of@them")
@example("sec[ret]")
@example("6379/12345")
@example("a&secret=b")
@example("a&db=secret")
@example("a&ssl_cert_reqs=secret")
@example("redis://secret")
@example("secret@host,secret:12")
@example("secret\uff0f@\uff05")
def test_messages_hold_no_part_of_a_password(form: str, password: str) -> None:
    for written in (password, quote(password, safe="")):
        assert not shared(form, written, password), said(form.format(written))


def test_errors_have_no_cause_that_repeats_the_url() -> None:
    for form in FORMS:
        for act in (parse, lambda url: connect(url, WITHIN)):
            try:
                act(form.format("hunter2"))
            except ValueError as error:
                assert error.__cause__ is None
                assert error.__suppress_context__ or error.__context__ is None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://app:secret@host:6379/3?socket_timeout=2", "redis://host:6379/3"),
        ("redis://", "redis://"),
        ("rediss://:p%40ss@[::1]:6380", "rediss://[::1]:6380"),
        ("unix:///run/redis.sock?db=1", "unix:///run/redis.sock"),
        ("redis+sentinel://app:secret@a:1,b/service/0", "redis+sentinel://a:1,b/service/0"),
        ("redis+cluster://app:secret@a_1.example:1,b", "redis+cluster://a_1.example:1,b"),
    ],
)
def test_shown_is_the_address(url: str, shown: str) -> None:
    assert parse(url).shown == shown


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://app:a/b@host", "%2F"),
        ("redis://app:a?b@host", "%3F"),
        ("redis://app:a#b@host", "%23"),
        ("redis://host#1", "%23"),
        ("redis://app:a b@host", "%20"),
        ("redis://host:65536", "up to 65535"),
        ("redis://host/cache", "must be a number"),
        ("redis://host?decode_responses=true", "decode_responses"),
        ("redis://host?decode_responses=false", "decode_responses"),
        ("redis://host?retry_on_timeout=true", "retry_on_timeout"),
        ("redis+cluster://host?ssl=false", "ssl=false"),
        ("redis://host?db", "name=value"),
        ("unix://host/path", "no host"),
        ("redis://a,b", "host:port"),
    ],
)
def test_parse_unusable_url_says_why(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse(url)
    with pytest.raises(ValueError, match=says):
        connect(url, 1.0)
