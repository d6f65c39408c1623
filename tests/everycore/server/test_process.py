"""What a process asks of the kernel, where the kernel refuses."""

import os
import resource
from pathlib import Path

import pytest

from everycore.server import process
from everycore.server.process import ResidentMemory, max_connections, prefer_as_oom_victim


@pytest.mark.parametrize("path", ["/proc/self/no-such-file", "/proc", "/proc/version"])
def test_oom_score_not_writable_is_no_error(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setattr(process, "OOM_SCORE_ADJ", Path(path))
    prefer_as_oom_victim()


@pytest.mark.parametrize(("own", "expected"), [("0\n", "300"), ("-997\n", "-697"), ("900\n", "1000")])
def test_oom_score_is_above_the_primarys(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own: str, expected: str
) -> None:
    (tmp_path / "score").write_text(own)
    monkeypatch.setattr(process, "OOM_SCORE_ADJ", tmp_path / "score")
    prefer_as_oom_victim()
    assert (tmp_path / "score").read_text() == expected


def test_resident_memory_without_its_file_is_still_known(tmp_path: Path) -> None:
    memory = ResidentMemory()
    present = memory.read()
    assert present > 2**20
    with (tmp_path / "other").open("wb") as other:
        os.dup2(other.fileno(), memory._statm)  # an app closed what it did not open, and the number is used again
    assert memory.read() >= present / 2
    os.close(memory._statm)
    assert memory.read() >= present / 2


def test_max_connections_keeps_a_reserve() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft * 0.5 < max_connections() < soft - min(soft // 10, 64)
