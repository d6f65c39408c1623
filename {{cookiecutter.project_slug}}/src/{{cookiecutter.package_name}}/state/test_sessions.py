"""Sessions on a real Redis: what other stores get wrong, held here."""

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis

from .sessions import Lifetimes, SessionStore, SessionTooLargeError

pytestmark = pytest.mark.anyio

KEY = "a-key-of-more-than-thirty-two-characters"


@pytest.fixture
def store(redis: Redis) -> SessionStore:
    return SessionStore(redis, [KEY])


async def made(store: SessionStore, **values: Any) -> str:
    """Save a new session; return its cookie."""
    session = await store.load(None)
    session.update(values)
    assert await store.save(session)
    assert session.id is not None
    return store.sign(session.id)


async def test_values_come_back_as_they_were(store: SessionStore) -> None:
    values = {"name": "Zoë", "nested": {"list": [1, 2.5, None, True]}, "empty": ""}
    session = await store.load(await made(store, **values))
    assert dict(session) == values


async def test_a_session_is_a_mapping_as_starlette_users_know_it(store: SessionStore) -> None:
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
    with pytest.raises(TypeError):
        session[1] = "keys are strings"  # type: ignore[index]


async def test_reading_writes_nothing(store: SessionStore, redis: Redis) -> None:
    cookie = await made(store, a=1)
    before = (await redis.info("commandstats")).get("cmdstat_hset", {}).get("calls")
    session = await store.load(cookie)
    assert session["a"] == 1
    assert await store.save(session)
    assert (await redis.info("commandstats")).get("cmdstat_hset", {}).get("calls") == before


async def test_a_visitor_with_nothing_to_remember_costs_no_key(store: SessionStore, redis: Redis) -> None:
    session = await store.load(None)
    assert not await store.save(session)
    assert await redis.dbsize() == 0


async def test_fifty_parallel_requests_that_write_a_key_each_keep_fifty(store: SessionStore) -> None:
    cookie = await made(store, start=0)
    sessions = await asyncio.gather(*(store.load(cookie) for _ in range(50)))
    for number, session in enumerate(sessions):
        session[f"key{number}"] = number
    await asyncio.gather(*(store.save(session) for session in sessions))
    assert len(await store.load(cookie)) == 51


async def test_a_slow_reader_never_undoes_a_write(store: SessionStore) -> None:
    cookie = await made(store, cart=["book"])
    slow, fast = await store.load(cookie), await store.load(cookie)
    assert slow["cart"] == ["book"]
    fast["cart"] = ["book", "pen"]
    await store.save(fast)
    await store.save(slow)
    assert (await store.load(cookie))["cart"] == ["book", "pen"]


async def test_a_nested_change_is_seen(store: SessionStore) -> None:
    cookie = await made(store, cart={"items": []})
    session = await store.load(cookie)
    session["cart"]["items"].append("pen")
    await store.save(session)
    assert (await store.load(cookie))["cart"] == {"items": ["pen"]}


async def test_logout_wins_over_a_request_still_running(store: SessionStore, redis: Redis) -> None:
    cookie = await made(store, user="ann")
    running, logout = await store.load(cookie), await store.load(cookie)
    logout.destroy()
    assert not await store.save(logout)
    running["page"] = 2
    assert not await store.save(running)
    assert await redis.dbsize() == 0
    assert not await store.load(cookie)


async def test_logout_wins_over_a_regenerate_still_running(store: SessionStore, redis: Redis) -> None:
    cookie = await made(store, user="ann")
    running, logout = await store.load(cookie), await store.load(cookie)
    logout.destroy()
    await store.save(logout)
    running.regenerate()
    assert not await store.save(running)
    assert await redis.dbsize() == 0


async def test_the_old_id_is_dead_after_regenerate_and_the_values_move(store: SessionStore) -> None:
    cookie = await made(store, cart=["book"])
    session = await store.load(cookie)
    session.regenerate()
    session["user"] = "ann"
    assert await store.save(session)
    assert session.id is not None
    assert dict(await store.load(store.sign(session.id))) == {"cart": ["book"], "user": "ann"}
    assert not await store.load(cookie)


async def test_an_id_chosen_by_the_client_is_never_adopted(store: SessionStore) -> None:
    chosen = store.sign("chosen-by-the-client")
    session = await store.load(chosen)
    session["user"] = "ann"
    await store.save(session)
    assert session.id != "chosen-by-the-client"
    assert not await store.load(chosen)


@pytest.mark.parametrize("cookie", [None, "", "x", "x.y", "é.ü", "a" * 5000, "\0", "."])
async def test_a_forged_cookie_is_a_new_visitor(store: SessionStore, cookie: str | None) -> None:
    assert (await store.load(cookie)).id is None


async def test_another_key_does_not_verify_and_a_rotated_one_does(redis: Redis, store: SessionStore) -> None:
    cookie = await made(store, a=1)
    new = "a-new-key-of-more-than-thirty-two-characters"
    assert not await SessionStore(redis, [new]).load(cookie)
    assert (await SessionStore(redis, [new, KEY]).load(cookie))["a"] == 1


async def test_the_database_holds_no_cookie(store: SessionStore, redis: Redis) -> None:
    cookie = await made(store, a=1)
    assert cookie.partition(".")[0] not in str(await redis.keys())


async def test_idle_and_absolute_expiry_hold_together(redis: Redis) -> None:
    store = SessionStore(redis, [KEY], Lifetimes(idle=100, absolute=40))
    await made(store, a=1)
    (key,) = await redis.keys()
    assert 0 < await redis.pttl(key) <= 40_000


async def test_past_its_absolute_end_a_session_is_gone_though_it_is_stored(redis: Redis) -> None:
    cookie = await made(SessionStore(redis, [KEY]), a=1)
    (key,) = await redis.keys()
    await redis.hset(key, "created", "1000")
    assert not await SessionStore(redis, [KEY]).load(cookie)


async def test_the_idle_time_is_touched_at_most_once_in_half_a_period(redis: Redis) -> None:
    store = SessionStore(redis, [KEY], Lifetimes(idle=100))
    cookie = await made(store, a=1)
    (key,) = await redis.keys()
    await redis.pexpire(key, 1000)
    await store.save(await store.load(cookie))
    assert await redis.pttl(key) <= 1000
    session = await store.load(cookie)
    session.touched -= 60
    await store.save(session)
    assert await redis.pttl(key) > 99_000


async def test_a_session_is_limited_in_size_and_the_rest_is_kept(redis: Redis) -> None:
    store = SessionStore(redis, [KEY], max_bytes=100)
    cookie = await made(store, small="x" * 50)
    session = await store.load(cookie)
    session["large"] = "y" * 60
    with pytest.raises(SessionTooLargeError, match="100 bytes"):
        await store.save(session)
    assert dict(await store.load(cookie)) == {"small": "x" * 50}


async def test_a_value_that_is_no_json_is_refused_at_the_save(store: SessionStore) -> None:
    for value, error in ((object(), TypeError), (float("nan"), ValueError)):
        session = await store.load(None)
        session["value"] = value
        with pytest.raises(error):
            await store.save(session)
