"""`available_cpus` with cgroups of both versions, as files in a folder."""

import os
from pathlib import Path

import pytest

from everycore.server.cpus import available_cpus


def v2(folder: Path, text: str) -> Path:
    (folder / "cpu.max").write_text(text)
    return folder


def v1(folder: Path, quota: int) -> Path:
    (folder / "cpu").mkdir()
    (folder / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (folder / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    return folder


def test_available_cpus_half_a_quota_is_one_worker(tmp_path: Path) -> None:
    (tmp_path / "v2").mkdir()
    (tmp_path / "v1").mkdir()
    assert available_cpus(v2(tmp_path / "v2", "50000 100000")) == (1, "the cgroup allows 0.5 CPUs")
    assert available_cpus(v1(tmp_path / "v1", 50000)) == (1, "the cgroup allows 0.5 CPUs")


@pytest.mark.parametrize("text", ["max 100000", "9900000 100000", "garbage", ""])
def test_available_cpus_without_a_quota_is_the_affinity(tmp_path: Path, text: str) -> None:
    count, reason = available_cpus(v2(tmp_path, text))
    assert count == len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert "available" in reason


def test_available_cpus_v1_minus_one_is_no_quota(tmp_path: Path) -> None:
    assert "available" in available_cpus(v1(tmp_path, -1))[1]


def test_available_cpus_parent_cgroup_quota_is_found(tmp_path: Path) -> None:
    """A service manager sets its quota on the process's own cgroup or a parent."""
    own = tmp_path / "system.slice" / "app.service"
    own.mkdir(parents=True)
    (tmp_path / "own").write_text("0::/system.slice/app.service\n")
    v2(own, "max 100000")
    v2(own.parent, "50000 100000")
    assert available_cpus(tmp_path, tmp_path / "own") == (1, "the cgroup allows 0.5 CPUs")


def test_available_cpus_python_cpu_count_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHON_CPU_COUNT", "7")
    assert available_cpus(v2(tmp_path, "50000 100000")) == (7, "PYTHON_CPU_COUNT is 7")


@pytest.mark.parametrize("value", ["default", "0", "-1", ""])
def test_available_cpus_without_a_number_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("PYTHON_CPU_COUNT", value)
    assert available_cpus(v2(tmp_path, "50000 100000")) == (1, "the cgroup allows 0.5 CPUs")
