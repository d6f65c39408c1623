"""A test that hangs fails at its timeout, and the tests after it run."""

import sys

from conftest import ROOT, captured

HANGING = """
import asyncio, time
import pytest

@pytest.fixture(params=["uvloop", "asyncio"])
def anyio_backend(request):
    return ("asyncio", {"use_uvloop": request.param == "uvloop"})

@pytest.fixture
async def hanging(anyio_backend):
    yield
    await asyncio.Event().wait()

@pytest.mark.anyio
async def test_waits():
    await asyncio.Event().wait()

@pytest.mark.anyio
async def test_blocks():
    time.sleep(600)

@pytest.mark.anyio
async def test_fixture_waits(hanging):
    pass

def test_sleeps():
    time.sleep(600)

@pytest.mark.anyio
async def test_passes():
    pass
"""


def test_hanging_tests_fail_and_the_others_run(tmp_path):
    (tmp_path / "test_hanging.py").write_text(HANGING)
    options = ["-q", "-n", "1", "--dist", "loadgroup", "--timeout", "1"]  # as `make test`
    command = [sys.executable, "-m", "pytest", "-p", "timeouts", "-c", "/dev/null", *options, tmp_path]
    ended = captured(command, tmp_path, 120, PYTHONPATH=str(ROOT / "tests"))
    summary = ended.stdout.splitlines()[-1]
    assert summary.startswith("5 failed, 4 passed, 2 errors in "), ended.stdout
