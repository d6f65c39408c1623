"""The board as several processes read and write it."""

from pathlib import Path

import pytest

from everycore.server import scoreboard
from everycore.server.children import State
from everycore.server.scoreboard import Reload, Scoreboard, ScoreboardError


def write(board: Scoreboard, row: int, pid: int, requests: int = 0, connections: int = 0) -> None:
    board.header[scoreboard.USED_ROWS] = max(board.header[scoreboard.USED_ROWS], row + 1)
    board.publish()
    cells = board.row(row)
    cells[scoreboard.PID], cells[scoreboard.STATE] = pid, State.READY
    cells[scoreboard.REQUESTS], cells[scoreboard.CONNECTIONS] = requests, connections


def test_a_reader_sees_what_the_workers_wrote(tmp_path: Path) -> None:
    board = Scoreboard.create(tmp_path / "board")
    write(board, 0, pid=11, requests=5)
    write(board, 2, pid=12, requests=7)
    snapshot = Scoreboard.read(tmp_path / "board").snapshot()
    assert [(row.pid, row.requests, row.state) for row in snapshot.workers] == [(11, 5, "ready"), (12, 7, "ready")]
    assert snapshot.requests == 12


def test_totals_never_run_backwards_when_a_worker_dies(tmp_path: Path) -> None:
    board = Scoreboard.create(tmp_path / "board")
    write(board, 0, pid=11, requests=5)
    board.absorb_dead_row(0)
    snapshot = board.snapshot()
    assert (snapshot.requests, snapshot.deaths, snapshot.workers) == (5, 1, [])


def test_no_reader_sees_half_of_it(tmp_path: Path) -> None:
    """Whatever cell the primary has just written: what a reader takes for complete has each request once."""
    board = Scoreboard.create(tmp_path / "board")
    write(board, 0, pid=11, requests=5)
    reader = Scoreboard.read(tmp_path / "board")
    seen = []

    class Watched:
        def __init__(self, cells: memoryview) -> None:
            self._cells = cells

        def __getitem__(self, at: slice) -> memoryview:
            return self._cells[at]

        def __setitem__(self, at: int, value: int) -> None:
            self._cells[at] = value
            if reader.cells[scoreboard.SEQUENCE] % 2 == 0:
                seen.append(reader.snapshot().requests)

    board.cells = Watched(board.cells)  # type: ignore[assignment]
    board.absorb_dead_row(0)
    board.publish()
    assert set(seen) == {5}


def test_who_accepts_and_what_they_hold_together_is_the_measure(tmp_path: Path) -> None:
    board = Scoreboard.create(tmp_path / "board")
    write(board, 0, pid=11, connections=9)
    write(board, 1, pid=12, connections=4)
    write(board, 2, pid=13, connections=0)
    board.row(2)[scoreboard.STATE] = State.DRAINING
    assert board.all_accepting() == (2, 13)


def test_only_its_owner_can_read_the_file(tmp_path: Path) -> None:
    Scoreboard.create(tmp_path / "board")
    assert (tmp_path / "board").stat().st_mode & 0o777 == 0o600


def test_a_reader_cannot_write(tmp_path: Path) -> None:
    Scoreboard.create(tmp_path / "board")
    with pytest.raises(TypeError):
        Scoreboard.read(tmp_path / "board").cells[0] = 1


def test_a_new_primary_leaves_the_old_file_to_the_old_workers(tmp_path: Path) -> None:
    old = Scoreboard.create(tmp_path / "board")
    write(old, 0, pid=11)
    new = Scoreboard.create(tmp_path / "board")
    assert new.snapshot().workers == []
    assert old.snapshot().workers[0].pid == 11


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"x" * scoreboard.SIZE])
def test_another_file_is_told_apart(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "board").write_bytes(content)
    with pytest.raises(ScoreboardError):
        Scoreboard.read(tmp_path / "board")


def test_garbage_on_a_row_does_not_break_a_reader(tmp_path: Path) -> None:
    board = Scoreboard.create(tmp_path / "board")
    write(board, 0, pid=11)
    for cell in range(scoreboard.ROW_CELLS):
        board.row(0)[cell] = 2**64 - 1
    assert board.snapshot().workers[0].state == "unknown"
    board.absorb_dead_row(0)
    board.absorb_dead_row(0)
    assert board.snapshot().deaths == 2


def test_how_far_a_reload_came_is_told_with_its_reason(tmp_path: Path) -> None:
    board = Scoreboard.create(tmp_path / "board")
    assert board.snapshot().reload == "none"
    board.set_reload_status(Reload.REFUSED, "é" * 1000)
    seen = Scoreboard.read(tmp_path / "board").snapshot()
    assert seen.reload == "refused"
    assert seen.reload_reason == "é" * (scoreboard.REASON_BYTES // 2)
    board.set_reload_status(Reload.DONE)
    assert board.snapshot().reload_reason == ""


def spoil(board: Scoreboard, value: int) -> None:
    for cell in range(len(board.cells)):
        board.cells[cell] = value


@pytest.mark.parametrize("value", [0, 1, 2**63, 2**64 - 1])
def test_garbage_on_the_whole_board_breaks_no_reader_and_the_primary_says_again_what_it_knows(
    tmp_path: Path, value: int
) -> None:
    board = Scoreboard.create(tmp_path / "board")
    for row in range(3):
        write(board, row, pid=row + 1, requests=5)
    board.absorb_dead_row(1)
    spoil(board, value)
    board.snapshot()
    board.all_accepting()
    for _ in range(2):
        spoil(board, value)
        board.absorb_dead_row(0)
    board.clear_unused_rows({2})
    board.publish()
    write(board, 2, pid=3)
    mended = Scoreboard.read(tmp_path / "board").snapshot()
    assert [row.pid for row in mended.workers] == [3]
    assert mended.deaths == 3
    assert mended.requests in (5, 7)


def test_a_new_image_goes_on_with_the_figures_of_the_old(tmp_path: Path) -> None:
    board = Scoreboard.create(tmp_path / "board")
    write(board, 0, pid=11, requests=5)
    board.absorb_dead_row(0)
    heir = Scoreboard.inherit(board.fd)
    write(heir, 0, pid=12, requests=2)
    heir.absorb_dead_row(0)
    assert (heir.snapshot().requests, heir.snapshot().deaths) == (7, 2)


def test_a_board_that_somebody_wrote_on_behind_its_end_is_read_all_the_same(tmp_path: Path) -> None:
    board = Scoreboard.create(tmp_path / "board")
    write(board, 0, pid=11)
    with (tmp_path / "board").open("ab") as file:
        file.write(b"noise")
    assert Scoreboard.read(tmp_path / "board").snapshot().workers[0].pid == 11
    assert Scoreboard.inherit(board.fd).snapshot().workers[0].pid == 11
