"""`shell`: Python with top-level `await` and the app's clients, as `python -m asyncio` has it."""

import ast
import asyncio
import inspect
import sys
import traceback
from code import InteractiveConsole
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from threading import Thread
from types import CodeType, FunctionType
from typing import Any

from starlette.applications import Starlette

from everycore.state.client.connect import connection_error
from everycore.state.client.url import parse
from everycore.state.lifespan import lifespan
from everycore.state.settings import StateSettings


class ShellError(Exception):
    """The shell cannot be opened. The message says what to do."""


class _LeavingError(Exception):
    """The code has called exit(). A SystemExit would end the event loop."""


def shell(settings: StateSettings) -> int:
    """Run what is typed, or the whole of stdin if that is no terminal. Return the exit code.

    Args:
        settings: Where Redis is, and how sessions are kept.

    Raises:
        ShellError: Redis does not respond.
    """
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever)  # tasks run while somebody types, and Ctrl-C ends a line
    thread.start()

    def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise
        except _LeavingError as leaving:
            raise SystemExit(*leaving.args) from None

    stack = AsyncExitStack()
    try:
        names = run(_open(settings, stack))
        if not sys.stdin.isatty():
            return _run_script(sys.stdin.read(), names, run)
        with suppress(ImportError):
            import readline  # noqa: F401 - gives input() its history and its keys
        _Console(names, run).interact(f"Try: await redis.ping(). Here are {', '.join(names)}.", "")
        return 0
    finally:
        run(stack.aclose())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _open(settings: StateSettings, stack: AsyncExitStack) -> dict[str, Any]:
    if reason := await connection_error(settings.redis_url, settings.redis_timeout):
        shown = parse(settings.redis_url).shown
        raise ShellError(f"Redis does not respond at REDIS_URL ({shown}): {reason} Start dev, or set REDIS_URL.")
    return dict(await stack.enter_async_context(lifespan(settings)(Starlette())))


async def _evaluate(compiled: CodeType, names: dict[str, Any]) -> bool:
    """Run code, and print the traceback of an exception without the frames of this module. Return whether it ended."""
    try:
        result = FunctionType(compiled, names)()
        if inspect.iscoroutine(result):  # it has a top-level `await`
            await result
    except SystemExit as leaving:
        raise _LeavingError(*leaving.args) from None
    except Exception as error:
        of_code = error.__traceback__.tb_next if error.__traceback__ else None
        traceback.print_exception(error.with_traceback(of_code))
        return False
    return True


def _run_script(text: str, names: dict[str, Any], run: Callable[..., Any]) -> int:
    try:
        compiled = compile(text, "<stdin>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    except SyntaxError as error:
        traceback.print_exception(error, limit=0)
        return 1
    return 0 if run(_evaluate(compiled, names)) else 1


class _Console(InteractiveConsole):
    def __init__(self, names: dict[str, Any], run: Callable[..., Any]) -> None:
        super().__init__(names)
        self.compile.compiler.flags |= ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        self._run = run

    def runcode(self, code: CodeType) -> None:
        self._run(_evaluate(code, self.locals))
