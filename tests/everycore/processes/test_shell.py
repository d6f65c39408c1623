"""`shell`: the app's clients in Python with top-level await, at a prompt and from a pipe."""

import sys
from typing import Any

import pytest

from terminal import Terminal

KEY = "a-key-of-more-than-thirty-two-characters"


def test_shell_runs_a_script_from_a_pipe(project: Any, redis_url: str) -> None:
    script = (
        "assert (await redis.ping()) is True\n"
        "async def compute(): return 'computed'\n"
        "print(await counters.increment('orders', 3), await cache.get_or_compute('a', compute, ttl=9))\n"
        "print(sessions, limits, broadcast)\n"
    )
    ended = project.run("shell", stdin=script, REDIS_URL=redis_url, SECRET_KEY=KEY)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("3 computed\n<everycore.state.")


@pytest.mark.parametrize(
    ("script", "code", "shown"),
    [
        ("await redis.get(\n", 1, "SyntaxError"),
        ("1 / 0\n", 1, 'Traceback (most recent call last):\n  File "<stdin>", line 1, in <module>\nZeroDivisionError'),
        ("await redis.execute_command('NONSENSE')\n", 1, "unknown command"),
        ("exit(3)\n", 3, ""),
        ("import sys; sys.exit('enough')\n", 1, "enough"),
        ("", 0, ""),
    ],
)
def test_shell_script_that_fails_has_its_exit_code(
    project: Any, redis_url: str, script: str, code: int, shown: str
) -> None:
    ended = project.run("shell", stdin=script, REDIS_URL=redis_url, SECRET_KEY=KEY)
    assert ended.returncode == code
    assert shown in ended.stderr if shown else not ended.stderr


def test_shell_without_redis_is_one_line(project: Any) -> None:
    for environ in ({}, {"REDIS_URL": "redis://127.0.0.1:1/0", "SECRET_KEY": KEY}):
        ended = project.run("shell", stdin="print('never')", **environ)
        assert (ended.returncode, ended.stdout) == (1, "")
        assert ended.stderr.startswith("error: Redis does not respond at REDIS_URL (")
        assert ended.stderr.endswith("Start dev, or set REDIS_URL.\n")
        assert ended.stderr.count("\n") == 1
    assert "SECRET_KEY is not set" in project.run("shell", REDIS_URL="redis://127.0.0.1:1/0").stderr


def test_shell_has_the_redis_and_the_key_of_dev(dev: Any, project: Any, get: Any) -> None:
    server = dev()
    cookie = get(server.url, "/visits")[2]
    script = f"session = await sessions.load('{cookie.partition('=')[2]}'); print(session['visits'])"
    ended = project.run("shell", stdin=script)
    assert (ended.stdout, ended.stderr) == ("1\n", "")


def test_shell_has_a_prompt_and_survives_ctrl_c(project: Any, redis_url: str) -> None:
    environ = {**project.environ, "REDIS_URL": redis_url, "SECRET_KEY": KEY}
    with Terminal([sys.executable, "-m", "shop", "shell"], cwd=project.folder, env=environ) as terminal:
        terminal.expect(">>> ")
        terminal.write("await redis.set('a', 6 * 7), await redis.get('a')\n")
        terminal.expect("(True, b'42')")
        terminal.write("import asyncio; task = asyncio.create_task(asyncio.sleep(0, 'ran'))\n")
        terminal.write("while not task.done(): pass\n\n")  # it runs although nothing awaits it
        terminal.expect(">>> ")
        terminal.write("await asyncio.sleep(3600)\n")
        terminal.expect("3600")
        terminal.write("\x03")
        terminal.expect("KeyboardInterrupt")
        terminal.write("1 / 0\n")
        terminal.expect("ZeroDivisionError")
        terminal.write("exit()\n")
        assert terminal.wait() == 0
