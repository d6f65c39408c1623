"""Children without a process: what is missing, what is too many, in every situation the primary meets."""

import pytest

from everycore.server.children import Child, Children, State


def started(children: Children, slot: int, state: State = State.READY) -> Child:
    child = Child(pid=100 + len(slots), slot=slot, generation=slots.generation, row=len(slots), since=0.0, state=state)
    slots.register(child)
    return child


def full(wanted: int) -> Children:
    slots = Children(wanted)
    for slot in range(wanted):
        started(slots, slot)
    return slots


def test_an_empty_cluster_misses_every_slot() -> None:
    assert Children(3).missing() == [0, 1, 2]


def test_a_full_cluster_misses_nothing_and_has_nothing_to_spare() -> None:
    slots = full(3)
    assert slots.missing() == []
    assert slots.surplus() == []


def test_a_starting_worker_holds_its_slot() -> None:
    slots = Children(1)
    started(slots, 0, State.STARTING)
    assert slots.missing() == []


def test_a_dead_workers_slot_is_missing_again() -> None:
    slots = full(2)
    slots.reap(101)
    assert slots.missing() == [1]


def test_a_stranger_is_reaped_without_a_trace() -> None:
    slots = full(1)
    assert slots.reap(4711) is None
    assert len(slots) == 1


def test_a_new_generation_misses_every_slot_and_spares_the_old_until_it_is_ready() -> None:
    slots = full(2)
    slots.generation += 1
    assert slots.missing() == [0, 1]
    assert slots.surplus() == []
    new = started(slots, 0, State.STARTING)
    assert slots.surplus() == []
    slots.ready(new.pid, now=1.0)
    assert [child.pid for child in slots.surplus()] == [100]


def test_a_retired_worker_serves_until_its_successor_is_ready() -> None:
    slots = full(1)
    slots.retiring(100)
    assert slots.missing() == [0]
    assert slots.surplus() == []
    successor = started(slots, 0)
    assert [child.pid for child in slots.surplus()] == [100]
    assert slots.is_current(successor)


def test_scaling_down_drains_the_highest_slots() -> None:
    slots = full(3)
    slots.wanted = 1
    assert [child.slot for child in slots.surplus()] == [1, 2]
    assert slots.missing() == []


def test_stopping_is_wanting_none() -> None:
    slots = full(2)
    slots.wanted = 0
    assert len(slots.surplus()) == 2
    assert slots.missing() == []


def test_a_draining_worker_is_not_asked_twice_and_holds_no_slot() -> None:
    slots = full(1)
    next(iter(slots)).state = State.DRAINING
    assert slots.surplus() == []
    assert slots.missing() == [0]


def test_a_late_ready_does_not_call_a_draining_worker_back() -> None:
    slots = full(1)
    child = next(iter(slots))
    child.state = State.DRAINING
    slots.ready(child.pid, now=1.0)
    assert child.state is State.DRAINING


def test_rows_are_reused_from_the_lowest_and_run_out() -> None:
    slots = full(2)
    assert slots.free_row(3) == 2
    slots.reap(100)
    assert slots.free_row(3) == 0
    with pytest.raises(OSError, match="all 3 rows"):
        full(3).free_row(3)


def test_a_beat_counts_from_its_own_time() -> None:
    child = Child(pid=1, slot=0, generation=1, row=0, since=0.0)
    child.hear(7_000_000_000, now=9.0)
    child.hear(7_000_000_000, now=20.0)
    assert child.heard == 7.0


@pytest.mark.parametrize("nonsense", [0, 1, 6_000_000_000, 2**64 - 1])
def test_nonsense_where_the_beat_should_be_kills_nobody_and_protects_nobody(nonsense: int) -> None:
    child = Child(pid=1, slot=0, generation=1, row=0, since=0.0)
    child.hear(7_000_000_000, now=9.0)
    child.hear(nonsense, now=30.0)
    child.hear(nonsense, now=90.0)
    assert child.heard == 30.0
