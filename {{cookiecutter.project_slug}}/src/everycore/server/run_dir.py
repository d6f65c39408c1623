"""The run directory: where one primary keeps its board, and a lock that says it is alive.

The lock is POSIX (fcntl(2), F_SETLK): it dies with the primary, is not inherited by its workers, and survives
its re-exec. A file left by a dead primary is thus never mistaken for a living one.
"""

import fcntl
import logging
import os
import stat
import time
from contextlib import suppress
from pathlib import Path

POLL_INTERVAL = 0.02  # seconds
LOCK_TIME = 1.0  # seconds for `lock_again`: a command that looks for the owner holds the lock for a moment
EXEC_TIME = 3.0  # seconds in which a re-executed primary may be without its lock

logger = logging.getLogger(__name__)


class RunDirError(Exception):
    """The directory cannot be used; the message says why and what to do."""


class RunDir:
    """`path` is made with mode 0700 and must belong to this user."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.board = path / "board"
        self._lock = path / "lock"

    def prepare(self) -> None:
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self.path.stat()
        except OSError as error:
            raise RunDirError(f"RUN_DIR {self.path} cannot be used: {error.strerror}. Set RUN_DIR elsewhere.") from None
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise RunDirError(
                f"RUN_DIR {self.path} must be a directory that only this user can write to. Set RUN_DIR elsewhere."
            )

    def lock(self) -> int:
        """Take the lock for this process and return its fd, which must stay open; RunDirError if it is taken."""
        try:
            fd = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:  # a primary that leaves has just removed the directory
            raise RunDirError(f"RUN_DIR {self.path} cannot be used: {error.strerror}. Try again.") from None
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.read(fd, 32).decode().strip() or "unknown"
            os.close(fd)
            raise RunDirError(
                f"RUN_DIR {self.path} belongs to the running primary {owner}. Stop it, or set another RUN_DIR."
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        return fd

    def lock_again(self, fd: int) -> None:
        """After the re-exec, with the descriptor that `lock` returned: gVisor has dropped the lock, Linux has not."""
        until = time.monotonic() + LOCK_TIME
        while time.monotonic() < until:
            with suppress(OSError):
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            time.sleep(POLL_INTERVAL)
        logger.error("the lock of RUN_DIR %s belongs to another process since the reload: stop one of both", self.path)

    def owner(self) -> int | None:
        """The pid of the living primary, or None. For other processes than the primary itself."""
        until = time.monotonic() + EXEC_TIME
        while True:
            try:
                fd = os.open(self._lock, os.O_RDWR)
            except OSError:
                return None
            try:
                text = os.read(fd, 32).decode().strip()
                pid = int(text) if text.isdigit() else None
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return pid
            finally:
                os.close(fd)
            # Nobody holds it. Where the kernel drops a lock at an exec, its primary may be about to take it again.
            if pid is None or not _exists(pid) or time.monotonic() >= until:
                return None
            time.sleep(POLL_INTERVAL)

    def remove(self, lock: int) -> None:
        """Remove what belongs to the holder of `lock`.

        The directory may have been removed under this primary (by logind's RemoveIPC, for one), and made again by
        another one.
        """
        try:
            ours = os.path.samestat(self._lock.stat(), os.fstat(lock))
        except OSError:
            return
        if not ours:
            logger.warning("RUN_DIR %s belongs to another primary: it is left as it is", self.path)
            return
        for path in (self.board, self._lock):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # it may hold what others put there
            self.path.rmdir()


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # it is another user's
    return True
