"""Makes a worker out of its primary: everything between fork(2) and the worker's own life."""

import logging
import os
import signal
from collections.abc import Callable
from typing import NoReturn

import uvicorn

from . import worker
from .signals import blocked
from .worker import Seat

logger = logging.getLogger(__name__)


def fork(config: uvicorn.Config, take_seat: Callable[[], Seat]) -> int:
    """Return the pid of a new worker that runs `config`. Raises OSError when there can be none now.

    `take_seat` is called in the child, and lets go of what is the primary's alone.
    """
    with blocked():
        pid = os.fork()
        if pid == 0:
            _live(config, take_seat)
    return pid


def _live(config: uvicorn.Config, take_seat: Callable[[], Seat]) -> NoReturn:
    """Never returns to the primary's loop."""
    code = 1
    try:
        seat = take_seat()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        code = worker.run(config, seat)
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        logger.exception("the worker failed")
    finally:
        os._exit(code & 0xFF)  # as sys.exit does: an OverflowError would let the child tidy up the primary's things
