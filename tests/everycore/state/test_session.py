"""A session is a dict of JSON values, whatever is done to it, through save and load."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from everycore.state.sessions.session import Session
from everycore.state.sessions.store import SessionStore

pytestmark = pytest.mark.anyio

KEY = "a-key-of-more-than-thirty-two-characters"

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10)
keys = st.sampled_from(["", "a", "b", ":", "user", "created", "ö\0"]) | st.text(max_size=5)
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
async def test_a_session_does_what_a_dict_does_through_save_and_load(redis: Redis, steps: list[Any]) -> None:
    store, model = SessionStore(redis, [KEY], max_bytes=2**20), dict[str, Any]()
    session = await store.load(None)
    for step, key, value in steps:
        if step == "popitem":  # which one is not promised
            if model:
                del model[session.popitem()[0]]
        elif step == "save":
            saved = await store.save(session)
            session = await store.load(store.sign(session.id) if saved and session.id else None)
        else:
            assert done(session, step, key, value) == done(model, step, key, value)
        assert session == model
        assert (sorted(session), len(session)) == (sorted(model), len(model))
        assert all(each in session for each in model)


def test_only_what_may_have_changed_is_compared_as_json() -> None:
    many = {b":key%d" % number: b"[%d]" % number for number in range(100)}
    session = Session("id", "name", {b"created": b"1", **many}, swap=never)
    assert session["key7"] == [7]
    session["key8"] = [8]
    assert session.changes() == ({}, [])
    session["key7"].append(1)
    assert session.changes() == ({b":key7": b"[7,1]"}, [])
    assert len(session._values) == 2


async def never(*_: Any) -> None:
    raise AssertionError


@pytest.mark.parametrize("user", ["", 7, b"ann"])
def test_a_users_id_is_a_string(user: Any) -> None:
    with pytest.raises(TypeError, match="string that is not empty"):
        Session(None, "", {}, never).user = user
