"""Awaits several commands at once, and leaves none of them running."""

import asyncio
from collections.abc import Awaitable
from typing import Any


async def gather_all(*answers: Awaitable[Any]) -> list[Any]:
    """Return the replies in order, when all of them are there. If some failed, raise the first failure.

    `asyncio.gather` raises at once and leaves the other commands running. Their client may be closed meanwhile, and
    then nobody awaits them.
    """
    replies = await asyncio.gather(*answers, return_exceptions=True)
    for reply in replies:
        if isinstance(reply, BaseException):
            raise reply
    return replies
