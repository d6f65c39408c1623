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


def test_children_none_misses_every_slot() -> None:
    assert Children(3).missing_slots() == [0, 1, 2]


def test_children_full_has_no_missing_and_no_surplus() -> None:
    children = full(3)
    assert children.missing_slots() == []
    assert children.surplus_children() == []


def test_worker_that_is_being_forked_holds_its_slot() -> None:
    assert Children(3).missing_slots(forking=[1]) == [0, 2]


def test_starting_worker_holds_its_slot() -> None:
    children = Children(1)
    started(children, 0, State.STARTING)
    assert children.missing_slots() == []


def test_dead_worker_leaves_its_slot_missing() -> None:
    children = full(2)
    children.reap(101)
    assert children.missing_slots() == [1]


def test_reap_of_an_unknown_pid_changes_nothing() -> None:
    children = full(1)
    assert children.reap(4711) is None
    assert len(children) == 1


def test_old_generation_serves_until_the_new_one_is_ready() -> None:
    children = full(2)
    children.generation += 1
    assert children.missing_slots() == [0, 1]
    assert children.surplus_children() == []
    new = started(children, 0, State.STARTING)
    assert children.surplus_children() == []
    children.ready(new.pid, now=1.0)
    assert [child.pid for child in children.surplus_children()] == [100]


def test_worker_of_an_old_generation_that_starts_is_surplus() -> None:
    children = full(1)
    children.generation += 1
    slow = started(children, 0, State.STARTING)
    children.generation += 1
    assert children.surplus_children() == [slow]
    assert children.missing_slots() == [0]


def test_retiring_worker_serves_until_it_is_replaced() -> None:
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


def test_zero_wanted_drains_all() -> None:
    children = full(2)
    children.wanted = 0
    assert len(children.surplus_children()) == 2
    assert children.missing_slots() == []


def test_draining_worker_is_no_surplus_and_holds_no_slot() -> None:
    children = full(1)
    next(iter(children)).state = State.DRAINING
    assert children.surplus_children() == []
    assert children.missing_slots() == [0]


def test_draining_worker_stays_draining_when_ready() -> None:
    children = full(1)
    child = next(iter(children))
    child.state = State.DRAINING
    children.ready(child.pid, now=1.0)
    assert child.state is State.DRAINING


def test_free_row_is_the_lowest_or_an_error() -> None:
    children = full(2)
    assert children.free_row(3, reserved=[]) == 2
    children.reap(100)
    assert children.free_row(3, reserved=[]) == 0
    assert children.free_row(3, reserved=[0]) == 2
    with pytest.raises(OSError, match="all 3 rows"):
        full(3).free_row(3, reserved=[])


def test_heartbeat_counts_from_its_own_time() -> None:
    child = Child(pid=1, slot=0, generation=1, row=0, since=0.0)
    child.record_heartbeat(7_000_000_000, now=9.0)
    child.record_heartbeat(7_000_000_000, now=20.0)
    assert child.last_heartbeat == 7.0


@pytest.mark.parametrize("nonsense", [0, 1, 6_000_000_000, 2**64 - 1])
def test_corrupt_heartbeat_counts_as_one_received_now(nonsense: int) -> None:
    child = Child(pid=1, slot=0, generation=1, row=0, since=0.0)
    child.record_heartbeat(7_000_000_000, now=9.0)
    child.record_heartbeat(nonsense, now=30.0)
    child.record_heartbeat(nonsense, now=90.0)
    assert child.last_heartbeat == 30.0
