"""Sessions on a real Redis: what other stores get wrong, held here."""

import asyncio
from contextlib import nullcontext
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from everycore.state.client.connect import connect
from everycore.state.sessions.session import SessionEndedError
from everycore.state.sessions.store import Lifetimes, SessionStore, SessionTooLargeError
from test_moving import only_marks_of_a_minute

pytestmark = pytest.mark.anyio

KEY = "a-key-of-more-than-thirty-two-characters"


@pytest.fixture
def store(redis: Redis) -> SessionStore:
    return SessionStore(redis, [KEY])


async def made(store: SessionStore, **values: Any) -> str:
    """Save a new session; return its cookie."""
    session = await store.load(None)
    session.update(values)
    id = await store.save(session)
    assert id is not None
    return store.sign(id)


async def test_saved_values_are_loaded(store: SessionStore) -> None:
    values = {"name": "Zoë", "nested": {"list": [1, 2.5, None, True]}, "empty": ""}
    session = await store.load(await made(store, **values))
    assert dict(session) == values


async def test_session_is_a_mapping(store: SessionStore) -> None:
    session = await store.load(await made(store, a=1, b=2))
    session["c"] = 3
    assert session.pop("a") == 1
    assert session.setdefault("d", 4) == 4
    assert (set(session), len(session), "a" in session, session.get("a")) == ({"b", "c", "d"}, 3, False, None)
    del session["b"]
    with pytest.raises(KeyError):
        session["b"]
    with pytest.raises(KeyError):
        del session["b"]


async def test_reading_writes_nothing(store: SessionStore, redis: Redis) -> None:
    cookie = await made(store, a=1)
    before = (await redis.info("commandstats")).get("cmdstat_hset", {}).get("calls")
    session = await store.load(cookie)
    assert session["a"] == 1
    assert await store.save(session)
    assert (await redis.info("commandstats")).get("cmdstat_hset", {}).get("calls") == before


async def test_empty_session_stores_no_key(store: SessionStore, redis: Redis) -> None:
    session = await store.load(None)
    assert not await store.save(session)
    assert await redis.dbsize() == 0


async def test_parallel_writes_of_fifty_keys_keep_all(store: SessionStore) -> None:
    cookie = await made(store, start=0)
    sessions = await asyncio.gather(*(store.load(cookie) for _ in range(50)))
    for number, session in enumerate(sessions):
        session[f"key{number}"] = number
    await asyncio.gather(*(store.save(session) for session in sessions))
    assert len(await store.load(cookie)) == 51


async def test_slow_reader_undoes_no_write(store: SessionStore) -> None:
    cookie = await made(store, cart=["book"])
    slow, fast = await store.load(cookie), await store.load(cookie)
    assert slow["cart"] == ["book"]
    fast["cart"] = ["book", "pen"]
    await store.save(fast)
    await store.save(slow)
    assert (await store.load(cookie))["cart"] == ["book", "pen"]


async def test_nested_change_is_saved(store: SessionStore) -> None:
    cookie = await made(store, cart={"items": []})
    session = await store.load(cookie)
    session["cart"]["items"].append("pen")
    await store.save(session)
    assert (await store.load(cookie))["cart"] == {"items": ["pen"]}


async def test_logout_wins_over_a_running_request(store: SessionStore, redis: Redis) -> None:
    cookie = await made(store, user_id="ann")
    running, logout = await store.load(cookie), await store.load(cookie)
    logout.destroy()
    assert not await store.save(logout)
    running["page"] = 2
    with pytest.raises(SessionEndedError):
        await store.save(running)
    assert await only_marks_of_a_minute(redis)
    assert not await store.load(cookie)


@pytest.mark.parametrize("key", ["page", "user_name"])
async def test_save_brings_no_vanished_session_back(store: SessionStore, redis: Redis, key: str) -> None:
    """Evicted, or deleted by an operator: Redis has no mark that stops a HSET of a known or of a new key."""
    running = await store.load(await made(store, page=1))
    await redis.flushdb()
    running[key] = 2
    with pytest.raises(SessionEndedError):
        await store.save(running)
    assert await redis.dbsize() == 0


async def test_late_save_of_a_vanished_session_is_refused(store: SessionStore, redis: Redis) -> None:
    """Two websockets that end an hour after the session: the mark has expired."""
    cookie = await made(store, page=1)
    late = [await store.load(cookie) for _ in range(2)]
    await redis.flushdb()
    for session in late:
        session._record.read_at -= 3600
        session["page"] = 2
    ends = await asyncio.gather(*(store.save(session) for session in late), return_exceptions=True)
    assert [type(end) for end in ends] == [SessionEndedError] * 2
    assert await redis.dbsize() == 0


async def test_write_beside_a_deletion_of_the_same_key_is_kept(store: SessionStore) -> None:
    cookie = await made(store, page=1, other=1)
    deleting, writing = await store.load(cookie), await store.load(cookie)
    del deleting["page"]
    await store.save(deleting)
    writing["page"] = 2
    await store.save(writing)
    assert dict(await store.load(cookie)) == {"page": 2, "other": 1}


async def test_concurrent_updates_of_one_key_lose_none(store: SessionStore) -> None:
    cookie = await made(store, n=0, untouched=1)
    sessions = [await store.load(cookie) for _ in range(50)]
    seen = await asyncio.gather(*(session.update("n", lambda old: old + 1) for session in sessions))
    assert sorted(seen) == list(range(1, 51))
    await asyncio.gather(*(store.save(session) for session in sessions))
    assert dict(await store.load(cookie)) == {"n": 50, "untouched": 1}


async def test_concurrent_updates_of_a_new_key_lose_none(store: SessionStore) -> None:
    cookie = await made(store, a=1)

    def add(number: int) -> Any:
        def fn(old: Any) -> Any:
            old = [] if old is None else old
            old.append(number)  # the very list that was read
            return old

        return fn

    sessions = [await store.load(cookie) for _ in range(50)]
    await asyncio.gather(*(session.update("list", add(number)) for number, session in enumerate(sessions)))
    assert sorted((await store.load(cookie))["list"]) == list(range(50))


async def test_update_is_written_at_once(store: SessionStore) -> None:
    cookie = await made(store, n=1)
    session = await store.load(cookie)
    session["n"] = 100
    assert await session.update("n", lambda old: old + 1) == 2
    assert (session["n"], (await store.load(cookie))["n"]) == (2, 2)
    assert session.changes() == ({}, [])


async def test_change_in_the_result_of_update_is_saved(store: SessionStore) -> None:
    cookie = await made(store, n=1)
    session = await store.load(cookie)
    (await session.update("list", lambda old: [1])).append(2)
    await store.save(session)
    assert (await store.load(cookie))["list"] == [1, 2]


async def test_save_decodes_no_list_that_was_not_read(store: SessionStore) -> None:
    session = await store.load(await made(store, n=1, cart=[1]))
    session["n"] = 2
    await store.save(session)
    assert dict.get(session, "cart") == b"[1]"


@pytest.mark.parametrize("moving", [False, True])
async def test_assignment_during_a_save_is_saved_by_the_next(store: SessionStore, moving: bool) -> None:
    """A websocket's handler may have tasks that go on while its session is saved."""
    session = await store.load(await made(store, n=1))
    session["n"] = 2
    if moving:
        session.regenerate()
    save = asyncio.create_task(store.save(session))
    await asyncio.sleep(0)  # the save has begun
    session["n"] = 3
    id = await save
    assert id is not None
    await store.save(session)
    assert (await store.load(store.sign(id)))["n"] == 3


async def test_update_of_an_unstored_session_is_an_assignment(store: SessionStore, redis: Redis) -> None:
    session = await store.load(None)
    assert await session.update("n", lambda old: (old or 0) + 1) == 1
    assert (dict(session), await redis.dbsize()) == ({"n": 1}, 0)


async def test_update_is_limited_in_size(redis: Redis) -> None:
    store = SessionStore(redis, [KEY], max_bytes=100)
    session = await store.load(await made(store, a=1))
    with pytest.raises(SessionTooLargeError):
        await session.update("b", lambda old: "x" * 100)


async def test_thousands_of_keys_are_saved_and_deleted(store: SessionStore) -> None:
    session = await store.load(await made(store, **{f"key{number}": 0 for number in range(4500)}))
    assert len(session) == 4500
    for number in range(4499):
        del session[f"key{number}"]
    session.update({f"new{number}": 1 for number in range(4500)})
    id = await store.save(session)
    assert id is not None
    assert len(await store.load(store.sign(id))) == 4501


@pytest.mark.one_server("counts the writes of the pipelined connection")
async def test_session_takes_one_round_trip_or_two(store: SessionStore, redis: Any) -> None:
    cookie = await made(store, a=1)
    session = await store.load(cookie)
    session["a"] = 3
    await store.save(session)  # Redis knows the script from here on, whichever tests ran before

    async def trips(presented: str | None, change: bool) -> int:
        before = redis.stats
        session = await store.load(presented)
        if change:
            session["a"] = 2
        await store.save(session)
        assert redis.stats.commands - before.commands == redis.stats.writes - before.writes
        return int(redis.stats.writes - before.writes)

    assert [await trips(None, False), await trips("x" * 76, False), await trips(cookie + "x", False)] == [0, 0, 0]
    assert [await trips(cookie, False), await trips(cookie, True), await trips(cookie, False)] == [1, 2, 1]


async def test_restarted_redis_loads_the_scripts(store: SessionStore, redis: Redis) -> None:
    cookie = await made(store, a=1)
    await redis.script_flush()
    session = await store.load(cookie)
    session["a"] = 2
    assert await store.save(session)
    assert (await store.load(cookie))["a"] == 2


async def test_id_chosen_by_the_client_is_not_adopted(store: SessionStore) -> None:
    chosen = store.sign("chosen-by-the-client")
    session = await store.load(chosen)
    session["user"] = "ann"
    assert await store.save(session) != "chosen-by-the-client"
    assert not await store.load(chosen)


async def test_rotated_key_verifies_and_unknown_one_does_not(redis: Redis, store: SessionStore) -> None:
    cookie = await made(store, a=1)
    new = "a-new-key-of-more-than-thirty-two-characters"
    assert not await SessionStore(redis, [new]).load(cookie)
    assert (await SessionStore(redis, [new, KEY]).load(cookie))["a"] == 1


async def test_database_holds_no_cookie(store: SessionStore, redis: Redis) -> None:
    cookie = await made(store, a=1)
    assert cookie.partition(".")[0] not in str(await redis.keys())


async def test_idle_and_absolute_expiry_hold_together(redis: Redis) -> None:
    store = SessionStore(redis, [KEY], Lifetimes(idle=100, absolute=40))
    await made(store, a=1)
    (key,) = await redis.keys()
    assert 0 < await redis.pttl(key) <= 40_000


async def test_session_past_its_absolute_end_is_not_loaded(redis: Redis) -> None:
    cookie = await made(SessionStore(redis, [KEY]), a=1)
    (key,) = await redis.keys()
    await redis.hset(key, "created", "1000")
    assert not await SessionStore(redis, [KEY]).load(cookie)


async def test_idle_time_is_renewed_once_in_half_a_period(redis: Redis) -> None:
    store = SessionStore(redis, [KEY], Lifetimes(idle=100))
    cookie = await made(store, a=1)
    (key,) = await redis.keys()
    await redis.pexpire(key, 1000)
    await store.save(await store.load(cookie))
    assert await redis.pttl(key) <= 1000
    session = await store.load(cookie)
    session._record.touched -= 60
    await store.save(session)
    assert await redis.pttl(key) > 99_000


async def test_session_too_large_is_refused(redis: Redis) -> None:
    store = SessionStore(redis, [KEY], max_bytes=100)
    cookie = await made(store, small="x" * 50)
    session = await store.load(cookie)
    session["large"] = "y" * 60
    with pytest.raises(SessionTooLargeError, match="100 bytes"):
        await store.save(session)
    assert dict(await store.load(cookie)) == {"small": "x" * 50}


fields = st.dictionaries(st.sampled_from([b":a", b":b", b":c"]), st.binary(max_size=20))


@settings(max_examples=300, deadline=None)
@given(fields, fields, st.integers(0, 60))
def test_session_grows_up_to_its_limit(stored: dict[bytes, bytes], after: dict[bytes, bytes], limit: int) -> None:
    store = SessionStore(connect("redis://x", 1), [KEY], max_bytes=limit)
    written = {name: raw for name, raw in after.items() if stored.get(name) != raw}
    deleted = [name for name in stored if name not in after]
    before, size = (sum(map(len, (*each, *each.values()))) for each in (stored, after))
    with pytest.raises(SessionTooLargeError) if limit < size > before else nullcontext():
        store._check_size(stored, written, deleted)


async def test_session_value_not_json_is_refused(store: SessionStore) -> None:
    for value, error in ((object(), TypeError), (float("nan"), ValueError)):
        session = await store.load(None)
        session["value"] = value
        with pytest.raises(error):
            await store.save(session)


async def test_cleared_session_starts_a_new_one(store: SessionStore, redis: Redis) -> None:
    cookie = await made(store, user_id="ann", cart=[1])
    session, running = await store.load(cookie), await store.load(cookie)
    session.clear()
    session["flash"] = "You are logged out."
    again = await store.load(store.sign(await store.save(session) or ""))
    assert dict(again) == {"flash": "You are logged out."}
    assert not await store.load(cookie)
    assert await store.sessions_of("ann") == []
    running["cart"].append(2)
    with pytest.raises(SessionEndedError):
        await store.save(running)
    assert [key for key in await redis.keys() if b"user" in key] == []


async def test_update_in_an_ended_session_raises(store: SessionStore) -> None:
    cookie = await made(store, n=1)
    running, logout = await store.load(cookie), await store.load(cookie)
    logout.clear()
    await store.save(logout)
    with pytest.raises(SessionEndedError):
        await running.update("n", lambda old: old + 1)


async def test_update_of_the_user_id_is_refused(store: SessionStore) -> None:
    session = await store.load(await made(store, n=1))
    with pytest.raises(ValueError, match=r"assign session\.user_id"):
        await session.update("user_id", lambda old: "ann")


async def test_user_id_set_in_any_way_moves_the_session(store: SessionStore) -> None:
    ways: list[Any] = [
        lambda session: setattr(session, "user_id", "ann"),
        lambda session: session.__setitem__("user_id", 7),
        lambda session: session.update(user_id="7"),
        lambda session: session.setdefault("user_id", "ann"),
    ]
    for way in ways:
        old = await made(store, cart=[1])
        session = await store.load(old)
        way(session)
        new = store.sign(await store.save(session) or "")
        assert new != old
        assert (await store.load(new)).user_id in ("ann", 7, "7")
        assert not await store.load(old)
    assert (await store.end_all(7), await store.end_all("ann")) == (2, 2)
