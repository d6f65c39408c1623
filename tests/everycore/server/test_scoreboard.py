"""The scoreboard, as several processes read and write it."""

import os
from pathlib import Path

import pytest

from everycore.server import scoreboard
from everycore.server.children import State
from everycore.server.exit_causes import ExitCause
from everycore.server.scoreboard import Reload, Scoreboard, ScoreboardError


def write(board: Scoreboard, row: int, pid: int, requests: int = 0, connections: int = 0) -> None:
    board.header[scoreboard.USED_ROWS] = max(board.header[scoreboard.USED_ROWS], row + 1)
    board.write_header()
    cells = board.row(row)
    cells[scoreboard.PID], cells[scoreboard.STATE] = pid, State.READY
    cells[scoreboard.REQUESTS], cells[scoreboard.CONNECTIONS] = requests, connections


def test_snapshot_has_what_workers_wrote(tmp_path: Path) -> None:
    board = Scoreboard.create(tmp_path / "board")
    write(board, 0, pid=11, requests=5)
    write(board, 2, pid=12, requests=7)
    snapshot = Scoreboard.read(tmp_path / "board").snapshot()
    assert [(row.pid, row.requests, row.state) for row in snapshot.workers] == [(11, 5, "ready"), (12, 7, "ready")]
    assert snapshot.requests == 12


def test_totals_keep_a_dead_workers_counts(tmp_path: Path) -> None:
    board = Scoreboard.create(tmp_path / "board")
    write(board, 0, pid=11, requests=5)
    board.absorb_dead_row(0, ExitCause.SIGNAL)
    snapshot = board.snapshot()
    assert (snapshot.requests, snapshot.deaths, snapshot.workers) == (5, 1, [])


def test_snapshot_never_sees_half_an_absorbed_row(tmp_path: Path) -> None:
    """After each cell that the primary writes, a reader counts each request exactly once."""
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
    board.absorb_dead_row(0, ExitCause.SIGNAL)
    board.write_header()
    assert set(seen) == {5}


def test_total_connections_counts_accepting_workers_only(tmp_path: Path) -> None:
    board = Scoreboard.create(tmp_path / "board")
    write(board, 0, pid=11, connections=9)
    write(board, 1, pid=12, connections=4)
    write(board, 2, pid=13, connections=0)
    board.row(2)[scoreboard.STATE] = State.DRAINING
    assert board.total_connections() == (2, 13)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot reserve the disk space of a file")
def test_create_reserves_the_space_of_all_workers(tmp_path: Path) -> None:
    Scoreboard.create(tmp_path / "board")
    assert os.stat(tmp_path / "board").st_blocks * 512 >= scoreboard.SIZE


def test_create_makes_a_file_for_its_owner_only(tmp_path: Path) -> None:
    Scoreboard.create(tmp_path / "board")
    assert (tmp_path / "board").stat().st_mode & 0o777 == 0o600


def test_read_is_read_only(tmp_path: Path) -> None:
    Scoreboard.create(tmp_path / "board")
    with pytest.raises(TypeError):
        Scoreboard.read(tmp_path / "board").cells[0] = 1


def test_create_leaves_the_old_file_to_old_workers(tmp_path: Path) -> None:
    old = Scoreboard.create(tmp_path / "board")
    write(old, 0, pid=11)
    new = Scoreboard.create(tmp_path / "board")
    assert new.snapshot().workers == []
    assert old.snapshot().workers[0].pid == 11


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"x" * scoreboard.SIZE])
def test_read_of_another_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "board").write_bytes(content)
    with pytest.raises(ScoreboardError):
        Scoreboard.read(tmp_path / "board")


def test_corrupt_row_is_readable(tmp_path: Path) -> None:
    board = Scoreboard.create(tmp_path / "board")
    write(board, 0, pid=11)
    for cell in range(scoreboard.ROW_CELLS):
        board.row(0)[cell] = 2**64 - 1
    assert board.snapshot().workers[0].state == "unknown"
    board.absorb_dead_row(0, ExitCause.SIGNAL)
    board.absorb_dead_row(0, ExitCause.SIGNAL)
    assert board.snapshot().deaths == 2


def test_reload_status_has_its_reason(tmp_path: Path) -> None:
    board = Scoreboard.create(tmp_path / "board")
    assert board.snapshot().reload == "none"
    board.set_reload_status(Reload.REFUSED, "é" * 1000)
    seen = Scoreboard.read(tmp_path / "board").snapshot()
    assert seen.reload == "refused"
    assert seen.reload_reason == "é" * (scoreboard.REASON_BYTES // 2)
    board.set_reload_status(Reload.DONE)
    assert board.snapshot().reload_reason == ""


def corrupt(board: Scoreboard, value: int) -> None:
    for cell in range(len(board.cells)):
        board.cells[cell] = value


@pytest.mark.parametrize("value", [0, 1, 2**63, 2**64 - 1])
def test_corrupt_scoreboard_is_restored_by_the_primary(tmp_path: Path, value: int) -> None:
    """And no reader raises meanwhile."""
    board = Scoreboard.create(tmp_path / "board")
    for row in range(3):
        write(board, row, pid=row + 1, requests=5)
    board.absorb_dead_row(1, ExitCause.SIGNAL)
    corrupt(board, value)
    board.snapshot()
    board.total_connections()
    for _ in range(2):
        corrupt(board, value)
        board.absorb_dead_row(0, ExitCause.SIGNAL)
    board.clear_unused_rows({2})
    board.write_header()
    write(board, 2, pid=3)
    restored = Scoreboard.read(tmp_path / "board").snapshot()
    assert [row.pid for row in restored.workers] == [3]
    assert restored.deaths == 3
    assert restored.requests in (5, 7)


def test_scoreboard_with_bytes_after_its_end_is_read(tmp_path: Path) -> None:
    board = Scoreboard.create(tmp_path / "board")
    write(board, 0, pid=11)
    with (tmp_path / "board").open("ab") as file:
        file.write(b"noise")
    assert Scoreboard.read(tmp_path / "board").snapshot().workers[0].pid == 11
