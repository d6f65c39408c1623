"""A session is a dict of JSON values, whatever is done to it, through save and load."""

import copy
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from starlette.responses import JSONResponse

from everycore.state.sessions.session import Record, Session
from everycore.state.sessions.store import SessionStore

pytestmark = pytest.mark.anyio

KEY = "a-key-of-more-than-thirty-two-characters"

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10)
keys = st.sampled_from(["", "a", "b", ":", "user_id", "created", "ö\0"]) | st.text(max_size=5)
steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["set", "setdefault"]), keys, values),
        st.tuples(st.sampled_from(["get", "delete", "pop", "nest"]), keys, st.none()),
        st.tuples(st.sampled_from(["update"]), st.dictionaries(keys, values, max_size=3), st.none()),
        st.tuples(st.sampled_from(["clear", "popitem", "save"]), st.none(), st.none()),
    ),
    max_size=15,
)


def done(mapping: Any, step: str, key: Any, value: Any) -> Any:
    """Do a step; return what it returned or raised."""
    try:
        match step:
            case "set":
                mapping[key] = value
            case "setdefault":
                return mapping.setdefault(key, value)
            case "get":
                return mapping.get(key), mapping[key]
            case "delete":
                del mapping[key]
            case "pop":
                return mapping.pop(key)
            case "nest":  # change a value in place
                found = mapping[key]
                if isinstance(found, list):
                    found.append("nested")
                elif isinstance(found, dict):
                    found["nested"] = [1]
            case "update":
                mapping.update(key)
            case "clear":
                mapping.clear()
        return None
    except KeyError:
        return KeyError


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
async def test_session_equals_a_dict_through_save_and_load(redis: Redis, steps: list[Any]) -> None:
    store, model = SessionStore(redis, [KEY], max_bytes=2**20), dict[str, Any]()
    session = await store.load(None)
    for step, key, value in steps:
        if step == "popitem":  # which one is not promised
            if model:
                del model[session.popitem()[0]]
        elif step == "save":
            id = await store.save(session)
            session = await store.load(store.sign(id) if id else None)
        else:
            assert done(session, step, key, value) == done(model, step, key, value)
        assert session == model
        assert (sorted(session), len(session)) == (sorted(model), len(model))
        assert all(each in session for each in model)


def stored(**values: Any) -> Session:
    """A session as it is loaded."""
    fields = {b":" + key.encode(): json.dumps(value, separators=(",", ":")).encode() for key, value in values.items()}
    return Session(Record("id", "name", {b"created": b"1", **fields}))


def test_session_decodes_only_the_lists_that_are_read() -> None:
    session = stored(**{f"key{number}": [number] for number in range(100)})
    assert session["key7"] == [7]
    session["key8"] = [8]
    assert session.changes() == ({}, [])
    session["key7"].append(1)
    assert session.changes() == ({b":key7": b"[7,1]"}, [])
    assert sum(type(value) is bytes for value in dict.values(session)) == 98


def test_session_nested_value_that_was_read_is_not_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[Any] = []
    monkeypatch.setattr(sys.modules[Session.__module__], "encode", encoded.append)
    session = stored(cart=[{"name": "tea", "n": 1}], user={"id": 1})
    assert session["cart"][0]["n"] == session["user"]["id"]
    assert (session.changes(), encoded) == (({}, []), [])


class Items(list[Any]):
    """What `marshal` refuses, and JSON takes for a list."""


@pytest.mark.parametrize("make", [list, Items, lambda _: {"items": Items()}, lambda _: Deep(), lambda _: ([1], {2: 3})])
def test_session_assigned_value_is_compared_at_each_save(make: Callable[[Any], Any]) -> None:
    session = stored(cart=[1])
    session["cart"] = make([1, 2])
    for _ in range(2):  # a save that failed has written nothing
        written, deleted = session.changes()
        assert json.loads(written[b":cart"]) == json.loads(json.dumps(session["cart"]))
    session._record.saved(written, deleted, dict(session))
    assert session.changes() == ({}, [])
    add(session["cart"])
    assert json.loads(session.changes()[0][b":cart"]) == json.loads(json.dumps(session["cart"]))
    session["cart"] = [1, 2]
    session._record.saved({b":cart": b"[1,2]"}, [], dict(session))
    del session["cart"]
    session._record.saved(*session.changes(), dict(session))
    session["cart"] = [1, 2]
    assert session.changes() == ({b":cart": b"[1,2]"}, [])


class Deep(dict[str, Any]):
    """A dict of the user's own."""


def add(value: Any) -> None:
    """Change a value in place, as deep as it goes."""
    if isinstance(value, list):
        value.append("added")
    elif isinstance(value, tuple):
        add(value[0])
    else:
        value.get("items", []).append("added")
        value["added"] = True


def accept(**values: Any) -> dict[str, Any]:
    return values


FULL: dict[str, Any] = {"name": "ann", "n": 1, "cart": [1, {"a": [2]}], "none": None, "user": {"id": 1}}


@pytest.mark.parametrize("read", [False, True])
@pytest.mark.parametrize(
    "use",
    [
        json.dumps,
        lambda mapping: json.dumps({"session": mapping}, indent=1),
        lambda mapping: JSONResponse(mapping).body,
        dict,
        lambda mapping: {**mapping},
        lambda mapping: accept(**mapping),
        lambda mapping: mapping | {"more": 1},
        lambda mapping: {"more": 1} | mapping,
        lambda mapping: mapping == FULL and mapping == mapping.copy() and mapping == FULL,
        lambda mapping: mapping == {**FULL, "n": 2},
        lambda mapping: mapping != FULL,
        lambda mapping: FULL != mapping,  # noqa: SIM300 - the other way round
        lambda mapping: (mapping.copy(), type(mapping.copy())),
        lambda mapping: (copy.copy(mapping), copy.deepcopy(mapping)),
        lambda mapping: (list(mapping), list(mapping.keys()), list(reversed(mapping)), len(mapping), bool(mapping)),
        lambda mapping: (list(mapping.items()), list(mapping.values())),
        lambda mapping: [mapping[key] for key in mapping],
        lambda mapping: [mapping.get(key) for key in ("cart", "nothing")],
        lambda mapping: (mapping.pop("cart"), mapping.pop("cart", 7), mapping.pop("n")),
        lambda mapping: (mapping.popitem(), len(mapping)),
        lambda mapping: (mapping.setdefault("cart", 1), mapping.setdefault("new", [])),
        "{name} {cart}".format_map,
        repr,
        lambda mapping: mapping.setdefault("_messages", []).append({"text": "hi"}) or mapping,  # starlette-flash
        lambda mapping: [key for key in mapping if key.startswith("n")],
        lambda mapping: ("cart" in mapping, "nothing" in mapping),
    ],
)
def test_session_behaves_as_a_dict(use: Callable[[Any], Any], read: bool) -> None:
    session, model = stored(**FULL), copy.deepcopy(FULL)
    if read:
        assert session["cart"] == FULL["cart"]
    assert use(session) == use(model)
    assert session == model


def test_session_in_place_union_is_saved() -> None:
    session = stored(n=1)
    session |= {"n": 2, "cart": []}
    assert session.changes() == ({b":n": b"2", b":cart": b"[]"}, [])


def test_session_attributes_are_not_the_visitors_keys() -> None:
    for name in (
        "id",
        "name",
        "user",
        "created",
        "touched",
        "ended",
        "stored",
        "moving",
        "user_id",
        "prefix",
        "record",
    ):
        session = stored(**{name: "the visitor's"})
        seen = getattr(session, name, session[name])  # as Jinja reads `session.name`
        assert seen == "the visitor's"
    with pytest.raises(AttributeError, match=r"set session\['user'\]"):
        stored().user = "ann"


@pytest.mark.parametrize("user_id", ["", 7.5, True, b"ann"])
def test_session_user_id_invalid_is_refused(user_id: Any) -> None:
    with pytest.raises(TypeError, match="non-empty string or an int"):
        stored().user_id = user_id


def test_session_value_not_json_is_named() -> None:
    for value, kind in ((datetime.now(UTC), TypeError), (float("nan"), ValueError), (b"bytes", TypeError)):
        session = stored(seen=1)
        session["seen"] = value
        with pytest.raises(kind, match=r"session\['seen'\] cannot be saved"):
            session.changes()
    session = stored()
    session[1] = "one"  # type: ignore[index]
    with pytest.raises(TypeError, match=r"session\[1\]: session keys must be strings"):
        session.changes()


def test_closed_session_refuses_each_change() -> None:
    changes: list[Callable[[Any], Any]] = [
        lambda session: session.__setitem__("n", 2),
        lambda session: session.__delitem__("n"),
        lambda session: session.update(n=2),
        lambda session: session.pop("n"),
        lambda session: session.popitem(),
        lambda session: session.setdefault("m", 2),
        lambda session: session.__ior__({"n": 2}),
        lambda session: session.clear(),
        lambda session: session.destroy(),
        lambda session: session.regenerate(),
        lambda session: setattr(session, "user_id", "ann"),
    ]
    for change in changes:
        session = stored(n=1)
        session.close("the response has begun")
        with pytest.raises(RuntimeError, match="the response has begun"):
            change(session)
