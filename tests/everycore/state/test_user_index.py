"""A user's sessions: found, listed, and ended everywhere, whoever comes between."""

import asyncio
import random
from contextlib import suppress
from typing import Any

import pytest
from redis.asyncio import Redis

from everycore.state.client.connect import connect
from everycore.state.sessions.session import SessionEndedError
from everycore.state.sessions.store import Lifetimes, SessionStore
from test_moving import before, made, only_marks_of_a_minute, saved

pytestmark = pytest.mark.anyio

KEY = "a-key-of-more-than-thirty-two-characters"


@pytest.fixture
def store(redis: Redis) -> SessionStore:
    return SessionStore(redis, [KEY])


async def test_sessions_of_lists_oldest_first_without_ids(store: SessionStore) -> None:
    cookies = [await made(store, "ann") for _ in range(3)]
    await made(store, "bob")
    await made(store)
    sessions = [await store.load(cookie) for cookie in cookies]
    expected = [store.record_of(each) for each in sessions]
    listed = await store.sessions_of("ann")
    assert sorted(listed, key=str) == sorted(expected, key=str)
    assert [record.created for record in listed] == sorted(record.created for record in listed)
    assert not any((each._record.id or "") in str(listed) for each in sessions)
    assert await store.sessions_of("nobody") == []


async def test_end_all_keeps_the_given_session(store: SessionStore) -> None:
    here, there, elsewhere = [await made(store, "ann") for _ in range(3)]
    bob = await made(store, "bob")
    session = await store.load(here)
    assert await store.end_all("ann", keep=session) == 2
    assert [(await store.load(cookie)).user_id for cookie in (here, there, elsewhere, bob)] == [
        "ann",
        None,
        None,
        "bob",
    ]
    assert [record.hashed_id for record in await store.sessions_of("ann")] == [session._record.name]
    assert await store.end_all("ann") == 1
    assert await store.end_all("ann") == 0


async def test_end_all_wins_over_a_running_save(store: SessionStore) -> None:
    cookie = await made(store, "ann")
    saving, moving, updating = [await store.load(cookie) for _ in range(3)]
    await store.end_all("ann")
    saving["page"] = 2
    moving.regenerate()
    with pytest.raises(SessionEndedError):
        await updating.update("n", lambda old: 1)
    for session in (saving, moving):
        with pytest.raises(SessionEndedError):
            await store.save(session)
    assert await store.sessions_of("ann") == []
    assert (await store.load(cookie)).user_id is None


@pytest.mark.parametrize("moves", [False, True])
async def test_end_all_ends_a_login_being_saved(store: SessionStore, moves: bool) -> None:
    session = await store.load(await made(store) if moves else None)
    session.user_id = "ann"
    before(store, "_create", lambda: store.end_all("ann"))
    with pytest.raises(SessionEndedError):
        await store.save(session)
    assert await store.sessions_of("ann") == []


async def test_two_ends_of_a_login_being_saved_end_it(store: SessionStore, redis: Any) -> None:
    """The second one must not remove the mark of the first."""
    session = await store.load(None)
    session.user_id = "ann"

    async def both() -> None:
        (listed,) = await store._users.names("ann")
        assert await store.end_all("ann") == 0
        await store._users.add("ann", listed, 60_000)  # as the other `end_all` has read it before
        assert await store.end_all("ann") == 0

    before(store, "_create", both)
    with pytest.raises(SessionEndedError):
        await store.save(session)
    assert await store.sessions_of("ann") == []


async def test_random_logins_and_ends_lose_no_session(store: SessionStore, redis: Any) -> None:
    async def login() -> None:
        session = await store.load(None)
        session.user_id = "ann"
        with suppress(SessionEndedError):
            await store.save(session)

    for _ in range(10):
        await asyncio.gather(*(store.end_all("ann") if number % 3 == 0 else login() for number in range(15)))
        living = [key for key in await redis.keys("session:" + "?" * 64) if await redis.type(key) == b"hash"]
        listed = [record.hashed_id for record in await store.sessions_of("ann")]
        assert sorted(key.decode().removeprefix("session:") for key in living) == sorted(listed)
    await store.end_all("ann")
    assert await store.sessions_of("ann") == []


@pytest.mark.parametrize("seed", range(5))
async def test_random_requests_at_once_leave_whole_sessions(store: SessionStore, redis: Any, seed: int) -> None:
    """They come between the read and the save of others. Each hash is a session that expires, all else a mark."""
    chance = random.Random(seed)
    acts: list[Any] = [
        lambda session: session.update(visits=2),
        lambda session: session.update(new=1),
        lambda session: session.pop("visits", None),
        lambda session: session.regenerate(),
        lambda session: session.clear(),
        lambda session: setattr(session, "user_id", "bob"),
    ]

    async def request(cookie: str) -> None:
        session = await store.load(cookie)
        for _ in range(chance.randrange(4)):
            await redis.ping()
        chance.choice(acts)(session)
        with suppress(SessionEndedError):
            await store.save(session)

    for _ in range(5):
        cookies = [await made(store, "ann") for _ in range(4)]
        requests = [request(chance.choice(cookies)) for _ in range(20)]
        await asyncio.gather(*requests, *([store.end_all("ann")] if chance.random() < 0.5 else []))
        for key in await redis.keys("session:" + "?" * 64):
            if await redis.type(key) == b"hash":
                assert await redis.hexists(key, "created")
                assert await redis.ttl(key) > 60
            else:
                assert 0 < await redis.ttl(key) <= 60


async def test_killed_worker_leaves_no_unlisted_session(store: SessionStore, redis: Redis) -> None:
    session = await store.load(None)
    session.user_id = "ann"

    async def dies() -> None:
        raise asyncio.CancelledError

    before(store, "_create", dies)
    with pytest.raises(asyncio.CancelledError):
        await store.save(session)
    assert await redis.keys() == [b"session:user:ann"]
    assert await store.sessions_of("ann") == []


async def test_end_all_spares_the_session_of_another_user(store: SessionStore) -> None:
    session = await store.load(await made(store, "ann"))
    session.user_id = "bob"
    cookie = await saved(store, session)
    assert (await store.sessions_of("ann"), len(await store.sessions_of("bob"))) == ([], 1)
    assert await store.end_all("ann") == 0
    session = await store.load(cookie)
    assert session.user_id == "bob"
    session.user_id = None
    assert (await store.load(await saved(store, session))).user_id is None
    assert await store.sessions_of("bob") == []
    session.user_id = "ann"
    await saved(store, session)
    assert await store.end_all("ann") == 1
    assert not await store.load(cookie)


async def test_logout_leaves_a_mark_for_a_minute(store: SessionStore, redis: Redis) -> None:
    session = await store.load(await made(store, "ann"))
    session.destroy()
    await store.save(session)
    assert await redis.dbsize() == 1
    assert await only_marks_of_a_minute(redis)


async def test_expired_session_drops_out_of_the_index(redis: Redis) -> None:
    store = SessionStore(redis, [KEY], Lifetimes(idle=100))
    gone, kept = [await store.load(await made(store, "ann")) for _ in range(2)]
    await redis.delete(f"session:{gone._record.name}")
    assert [record.hashed_id for record in await store.sessions_of("ann")] == [kept._record.name]
    await redis.zadd("session:user:ann", {gone._record.name: 1})  # as if its time were over
    assert [record.hashed_id for record in await store.sessions_of("ann")] == [kept._record.name]
    assert await redis.zrange("session:user:ann", 0, -1) == [kept._record.name.encode()]
    assert 100_000 < await redis.pttl("session:user:ann") <= 160_000  # as long as the last of them, and a minute


async def test_renewed_session_stays_in_the_index(redis: Any) -> None:
    store = SessionStore(redis, [KEY], Lifetimes(idle=100))
    session = await store.load(await made(store, "ann"))
    known_until = await redis.zscore("session:user:ann", session._record.name)
    await redis.zincrby("session:user:ann", -60_000, session._record.name)
    session._record.touched -= 60
    assert await store.save(session)
    assert await redis.zscore("session:user:ann", session._record.name) >= known_until


async def test_user_index_works_on_a_redis_cluster(
    redis_cluster_url: str,
) -> None:
    async with connect(redis_cluster_url, 2.0) as client:
        await client.flushall()
        store = SessionStore(client, [KEY])
        cookies = [await made(store, "ann", n=0) for _ in range(10)]
        first = await store.load(cookies[0])
        await asyncio.gather(*(first.update("n", lambda old: old + 1) for _ in range(5)))
        first.regenerate()
        cookie = await saved(store, first)
        assert (await store.load(cookie))["n"] == 5
        assert len(await store.sessions_of("ann")) == 10
        assert await store.end_all("ann", keep=first) == 9
        assert [record.hashed_id for record in await store.sessions_of("ann")] == [first._record.name]
