"""Checks before a start of `serve`: whether the settings of the state are valid, and whether Redis responds.

A forked process asks. So the primary loads no library for it, and a reload can replace these libraries.
"""

import json
import os
from collections.abc import Iterator

from everycore.server.children import describe_exit
from everycore.server.import_errors import summarize


def findings(app: str) -> Iterator[tuple[str, int]]:
    """Yield what was found: a sentence, and the exit code that it means. With code 0 it is a warning.

    Args:
        app: The project's own app, as "module:attribute".
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            with open(writer, "w") as answer:
                json.dump(_answer(app), answer)
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as answer:
        text = answer.read()
    _, status = os.waitpid(pid, 0)
    if text:
        yield from json.loads(text)
    else:
        yield f"Redis could not be asked: the process that asks {describe_exit(status)}.", 1


def _answer(app: str) -> list[tuple[str, int]]:
    try:
        return _ask(app)
    except Exception as error:
        return [(f"Redis could not be asked: {summarize(error, __name__)}.", 1)]


def _ask(app: str) -> list[tuple[str, int]]:
    import asyncio

    from everycore.cli.checks import USAGE, on_redis
    from everycore.environ import SettingsError
    from everycore.state.settings import StateSettings

    try:
        settings = StateSettings.for_app(app)
    except SettingsError as error:
        return [(str(fault), USAGE) for fault in error.args]
    found = asyncio.run(on_redis(settings, rights=False, production=settings.production))
    return [(finding.text, finding.code) for finding in found]
