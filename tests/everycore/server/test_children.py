"""Children without a process: what is missing, what is too many, in every situation the primary meets."""

import pytest

from everycore.server.children import Child, Children, State


def started(children: Children, slot: int, state: State = State.READY) -> Child:
    child = Child(
        pid=100 + len(children), slot=slot, generation=children.generation, row=len(children), since=0.0, state=state
    )
    children.register(child)
    return child


def full(wanted: int) -> Children:
    children = Children(wanted)
    for slot in range(wanted):
        started(children, slot)
    return children


def test_an_empty_cluster_misses_every_slot() -> None:
    assert Children(3).missing_slots() == [0, 1, 2]


def test_a_full_cluster_misses_nothing_and_has_nothing_to_spare() -> None:
    children = full(3)
    assert children.missing_slots() == []
    assert children.surplus_children() == []


def test_a_starting_worker_holds_its_slot() -> None:
    children = Children(1)
    started(children, 0, State.STARTING)
    assert children.missing_slots() == []


def test_a_dead_workers_slot_is_missing_again() -> None:
    children = full(2)
    children.reap(101)
    assert children.missing_slots() == [1]


def test_a_stranger_is_reaped_without_a_trace() -> None:
    children = full(1)
    assert children.reap(4711) is None
    assert len(children) == 1


def test_a_new_generation_misses_every_slot_and_spares_the_old_until_it_is_ready() -> None:
    children = full(2)
    children.generation += 1
    assert children.missing_slots() == [0, 1]
    assert children.surplus_children() == []
    new = started(children, 0, State.STARTING)
    assert children.surplus_children() == []
    children.ready(new.pid, now=1.0)
    assert [child.pid for child in children.surplus_children()] == [100]


def test_a_retired_worker_serves_until_its_successor_is_ready() -> None:
    children = full(1)
    children.retiring(100)
    assert children.missing_slots() == [0]
    assert children.surplus_children() == []
    successor = started(children, 0)
    assert [child.pid for child in children.surplus_children()] == [100]
    assert children.is_current(successor)


def test_scaling_down_drains_the_highest_slots() -> None:
    children = full(3)
    children.wanted = 1
    assert [child.slot for child in children.surplus_children()] == [1, 2]
    assert children.missing_slots() == []


def test_stopping_is_wanting_none() -> None:
    children = full(2)
    children.wanted = 0
    assert len(children.surplus_children()) == 2
    assert children.missing_slots() == []


def test_a_draining_worker_is_not_asked_twice_and_holds_no_slot() -> None:
    children = full(1)
    next(iter(children)).state = State.DRAINING
    assert children.surplus_children() == []
    assert children.missing_slots() == [0]


def test_a_late_ready_does_not_call_a_draining_worker_back() -> None:
    children = full(1)
    child = next(iter(children))
    child.state = State.DRAINING
    children.ready(child.pid, now=1.0)
    assert child.state is State.DRAINING


def test_rows_are_reused_from_the_lowest_and_run_out() -> None:
    children = full(2)
    assert children.free_row(3) == 2
    children.reap(100)
    assert children.free_row(3) == 0
    with pytest.raises(OSError, match="all 3 rows"):
        full(3).free_row(3)


def test_a_beat_counts_from_its_own_time() -> None:
    child = Child(pid=1, slot=0, generation=1, row=0, since=0.0)
    child.record_heartbeat(7_000_000_000, now=9.0)
    child.record_heartbeat(7_000_000_000, now=20.0)
    assert child.last_heartbeat == 7.0


@pytest.mark.parametrize("nonsense", [0, 1, 6_000_000_000, 2**64 - 1])
def test_nonsense_where_the_beat_should_be_kills_nobody_and_protects_nobody(nonsense: int) -> None:
    child = Child(pid=1, slot=0, generation=1, row=0, since=0.0)
    child.record_heartbeat(7_000_000_000, now=9.0)
    child.record_heartbeat(nonsense, now=30.0)
    child.record_heartbeat(nonsense, now=90.0)
    assert child.last_heartbeat == 30.0
