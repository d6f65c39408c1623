"""A new id at login, and all the ways in which others come between."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError

from everycore.state.sessions.session import Record, Session, SessionEndedError
from everycore.state.sessions.store import SessionStore

pytestmark = pytest.mark.anyio


async def only_marks_of_a_minute(redis: Any) -> bool:
    """Whether Redis holds nothing of a session but marks that expire."""
    keys = await redis.keys("session:" + "?" * 64)
    return all([await redis.type(key) == b"string" and 0 < await redis.ttl(key) <= 60 for key in keys])


@pytest.fixture
def store(redis: Redis) -> SessionStore:
    return SessionStore(redis, ["a-key-of-more-than-thirty-two-characters"])


async def made(store: SessionStore, user: str | None = None, **values: Any) -> str:
    session = await store.load(None)
    session.update(values, visits=1)
    session.user_id = user
    return await saved(store, session)


async def saved(store: SessionStore, session: Session) -> str:
    """Save it; return its cookie."""
    id = await store.save(session)
    assert id is not None
    return store.sign(id)


def before(store: SessionStore, name: str, meanwhile: Callable[[], Awaitable[Any]]) -> None:
    """Have something done between a save's steps: just before the script `name`, once."""
    script = getattr(store, name)

    async def run(*args: Any) -> Any:
        setattr(store, name, script)
        await meanwhile()
        return await script(*args)

    setattr(store, name, run)


async def test_move_invalidates_old_id_and_keeps_values(store: SessionStore) -> None:
    old = await made(store, cart=["book"], gone=1)
    session = await store.load(old)
    session.regenerate()
    session["seen"] = True
    del session["gone"]
    new = await saved(store, session)
    assert new != old
    assert dict(await store.load(new)) == {"cart": ["book"], "visits": 1, "seen": True}
    assert not await store.load(old)
    assert (await store.load(new))._record.created == session._record.created


async def test_writes_during_a_move_are_copied(store: SessionStore) -> None:
    old = await made(store, cart=["book"], theme="dark")

    async def others() -> None:
        other = await store.load(old)
        other["cart"].append("pen")
        other["visits"] = 9
        del other["theme"]
        await store.save(other)

    session = await store.load(old)
    session.regenerate()
    session["visits"] = 2
    before(store, "_move", others)
    moved = await store.load(await saved(store, session))
    assert dict(moved) == {"cart": ["book", "pen"], "visits": 2}


async def test_end_during_the_copy_of_late_changes_ends_it(store: SessionStore) -> None:
    old = await made(store, "ann")

    async def others() -> None:
        other = await store.load(old)
        other["visits"] = 9
        await store.save(other)

    session = await store.load(old)
    session.regenerate()
    before(store, "_move", others)
    before(store, "_save", lambda: store.end_all("ann"))
    assert not await store.load(await saved(store, session))
    assert await store.sessions_of("ann") == []


@pytest.mark.parametrize("known", [True, False])
async def test_save_beside_a_move_is_kept_or_refused(store: SessionStore, known: bool) -> None:
    """Ten write a key of their own, which is known or new. What is not refused is in the session with the new id."""
    for _ in range(5):
        old = await made(store, None, **({str(number): 0 for number in range(10)} if known else {}))
        mover, *others = [await store.load(old) for _ in range(11)]
        mover.regenerate()
        for number, other in enumerate(others):
            other[str(number)] = 1
        saves = [store.save(each) for each in (*others[:5], mover, *others[5:])]
        ends = await asyncio.gather(*saves, return_exceptions=True)
        new = await store.load(store.sign(str(ends.pop(5))))
        assert {type(end) for end in ends} <= {str, SessionEndedError}
        assert [new.get(str(number)) == 1 for number in range(10)] == [isinstance(end, str) for end in ends]
        assert not await store.load(old)


async def test_logout_wins_over_a_running_move(store: SessionStore, redis: Redis) -> None:
    old = await made(store, "ann")

    async def logout() -> None:
        session = await store.load(old)
        session.destroy()
        await store.save(session)

    session = await store.load(old)
    session.regenerate()
    before(store, "_move", logout)
    with pytest.raises(SessionEndedError):
        await store.save(session)
    assert await only_marks_of_a_minute(redis)
    assert await store.sessions_of("ann") == []


async def test_parallel_moves_lose_no_login(store: SessionStore) -> None:
    old = await made(store, cart=["book"])
    first, second = await store.load(old), await store.load(old)
    for session in (first, second):
        session.user_id = "ann"
    cookies = await asyncio.gather(saved(store, first), saved(store, second))
    assert len({old, *cookies}) == 3
    for cookie in cookies:
        session = await store.load(cookie)
        assert (session.user_id, session["cart"]) == ("ann", ["book"])
    assert not await store.load(old)
    assert len(await store.sessions_of("ann")) == 2


async def test_second_move_revives_no_ended_session(store: SessionStore) -> None:
    old = await made(store, "ann")
    first, second, third = [await store.load(old) for _ in range(3)]
    for session in (first, second, third):
        session.regenerate()
    await store.save(first)
    assert await store.save(second)  # the first one's session lives
    assert await store.end_all("ann") == 2
    with pytest.raises(SessionEndedError):
        await store.save(third)
    assert await store.sessions_of("ann") == []


async def test_request_with_old_id_sets_no_cookie(store: SessionStore, redis: Redis) -> None:
    old = await made(store)
    session = await store.load(old)
    session.regenerate()
    await store.save(session)
    keys = await redis.dbsize()
    late = await store.load(old)
    assert not late
    assert not await store.save(late)
    late["visits"] = 1
    with pytest.raises(SessionEndedError, match="moved to a new id"):
        await store.save(late)
    assert await redis.dbsize() == keys


async def test_login_with_the_old_id_succeeds(store: SessionStore) -> None:
    old = await made(store, secret=1)
    session = await store.load(old)
    session.regenerate()
    await store.save(session)
    late = await store.load(old)  # the second half of a double click, whose first answer is never read
    late.user_id = "ann"
    assert dict(await store.load(await saved(store, late))) == {"user_id": "ann"}


async def test_outage_during_a_move_keeps_the_old_id(store: SessionStore) -> None:
    old = await made(store, "ann")
    session = await store.load(old)
    session.regenerate()

    async def outage() -> None:
        raise ConnectionError("away")

    before(store, "_move", outage)
    with pytest.raises(ConnectionError):
        await store.save(session)
    assert (await store.load(old)).user_id == "ann"
    assert await store.end_all("ann") == 2  # also the one whose cookie nobody has


def test_move_without_cookie_raises(store: SessionStore) -> None:
    session = Session(Record("id", "name", {}), store._swap)
    session._record.too_late = "the websocket is accepted"
    with pytest.raises(RuntimeError, match="cannot move to a new id: the websocket is accepted"):
        session.regenerate()
    session["n"] = 1  # which is saved at the end
    session.clear()
    with pytest.raises(RuntimeError, match="cannot be changed: the websocket is accepted"):
        session["n"] = 2


async def test_user_id_changed_where_no_cookie_can_be_set_raises(store: SessionStore) -> None:
    session = await store.load(await made(store))
    session._record.too_late = "the websocket is accepted"
    session.user_id = "ann"
    with pytest.raises(RuntimeError, match="the websocket is accepted"):
        await store.save(session)
