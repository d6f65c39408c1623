"""What a worker remembers, and when it must not: without Redis, on a clock of the test's own."""

from typing import Any

from everycore.state.cache.store import MAX_STALENESS, OVERHEAD, NearCache


def near(max_entries: int = 100, max_bytes: int = 1_000_000) -> tuple[NearCache, list[Any]]:
    heard: list[Any] = []
    one = NearCache(heard.append, max_entries, max_bytes)
    one.connected(None)
    one.confirm(0.0)
    return one, heard


def test_unconfirmed_item_is_not_served() -> None:
    one = NearCache(lambda names: None)
    one.connected(None)
    one.keep("k", "v", 1, 100.0)
    assert one.get("k", 0.0) is None
    one.confirm(0.0)
    assert one.get("k", MAX_STALENESS * 0.99) == "v"
    assert one.get("k", MAX_STALENESS) is None
    one.confirm(MAX_STALENESS)
    assert one.get("k", MAX_STALENESS) == "v"  # it was true all the time
    one.confirm(0.0)  # an answer that comes late confirms nothing newer
    assert one.get("k", MAX_STALENESS) == "v"


def test_expired_item_is_dropped_without_a_push() -> None:
    one, _ = near()
    one.keep("k", "v", 1, 0.5)
    assert one.get("k", 0.49) == "v"
    assert one.get("k", 0.5) is None
    assert (len(one), one.bytes) == (0, 0)


def test_push_of_any_form_drops_its_names() -> None:
    one, heard = near()
    for name in ("a", "b", "c"):
        one.keep(name, name, 1, 9.0)
    one.invalidated([b"a", "b", b"\xff foreign"])
    assert [one.get(name, 0.0) for name in ("a", "b", "c")] == [None, None, "c"]
    assert heard == [["a", "b", "\ufffd foreign"]]


def test_flush_and_lost_connection_drop_all() -> None:
    one, heard = near()
    one.keep("k", "v", 1, 9.0)
    one.invalidated(None)
    assert (len(one), one.bytes) == (0, 0)
    one.keep("k", "v", 1, 9.0)
    one.lost()
    assert (len(one), one.bytes) == (0, 0)
    one.keep("k", "v", 1, 9.0)
    assert one.get("k", 0.0) is None  # until the new connection has brought an answer
    assert heard == [None, None]


def test_least_recently_used_is_dropped_first() -> None:
    one, _ = near(max_entries=3)
    for name in "abc":
        one.keep(name, name, 1, 9.0)
    one.get("a", 0.0)
    one.keep("d", "d", 1, 9.0)
    assert [one.get(name, 0.0) for name in "abcd"] == ["a", None, "c", "d"]


def test_bytes_are_bounded_and_large_item_is_skipped() -> None:
    one, _ = near(max_bytes=3 * (OVERHEAD + 101))
    for name in "abcd":
        one.keep(name, name, 100, 9.0)
    assert (len(one), one.bytes) == (3, 3 * (OVERHEAD + 101))
    one.keep("x", "x", 10_000, 9.0)
    assert one.get("x", 0.0) is None
    assert len(one) == 3
    one.keep("d", "small", 1, 9.0)  # again, smaller
    assert one.bytes == 2 * (OVERHEAD + 101) + OVERHEAD + 2
