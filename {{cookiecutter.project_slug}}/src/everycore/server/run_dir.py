"""The run directory, where one primary keeps its scoreboard and a lock that shows that the primary is alive.

The lock is a POSIX lock (fcntl(2), F_SETLK). The kernel releases it when the primary exits, and no other process
inherits it. So the files of a dead primary are never taken for those of a running one.
"""

import fcntl
import logging
import os
import stat
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)


class RunDirError(Exception):
    """The run directory cannot be used. The message says why and what to do."""


class RunDir:
    """The run directory at `path`. It may not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.board = path / "board"
        self.metrics = path / "metrics"
        self._lock = path / "lock"

    def prepare(self) -> None:
        """Create the directory with mode 0700, or raise RunDirError if another user can write to it."""
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
        """Acquire the lock for this process.

        Returns:
            The descriptor of the lock file, which must stay open.

        Raises:
            RunDirError: A running primary holds the lock.
        """
        try:
            fd = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:  # an exiting primary may have just removed the directory
            raise RunDirError(f"RUN_DIR {self.path} cannot be used: {error.strerror}. Try again.") from None
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.read(fd, 32).decode().strip() or "unknown"
            os.close(fd)
            raise RunDirError(
                f"RUN_DIR {self.path} belongs to the running primary {owner}. "
                "Set another RUN_DIR, or stop that one if it is yours."
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        return fd

    def owner(self) -> int | None:
        """Return the pid of the running primary, or None. Not to be called in the primary itself."""
        try:
            fd = os.open(self._lock, os.O_RDWR)
        except OSError:
            return None
        try:
            text = os.read(fd, 32).decode().strip()
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return int(text) if text.isdigit() else None
        finally:
            os.close(fd)
        return None

    def restore(self, lock: int, board: int) -> int:
        """Make the directory again if it was removed under this primary, by logind's RemoveIPC for one.

        The workers keep the old scoreboard mapped. Its file has no name any more, so the new name is a link to the
        descriptor. Only Linux has such links.

        Args:
            lock: What `lock()` returned.
            board: Descriptor of the scoreboard.

        Returns:
            The descriptor of the lock file, which may be a new one.

        Raises:
            RunDirError: The directory cannot be made, or another primary has made it.
        """
        if self._is_own(lock):
            return lock
        self.prepare()
        new = self.lock()
        os.close(lock)
        with suppress(OSError):
            self.board.unlink(missing_ok=True)
            self.board.symlink_to(f"/proc/{os.getpid()}/fd/{board}")
        return new

    def _is_own(self, lock: int) -> bool | None:
        """Return whether the lock file is that of `lock`, or None if there is none."""
        try:
            return os.path.samestat(self._lock.stat(), os.fstat(lock))
        except OSError:
            return None

    def remove(self, lock: int) -> None:
        """Remove the scoreboard, the lock file and the directory, if they are those of `lock`.

        Args:
            lock: What `lock()` or `restore()` returned.
        """
        is_own = self._is_own(lock)
        if is_own is None:
            return
        if not is_own:
            logger.warning("RUN_DIR %s belongs to another primary; leaving it", self.path)
            return
        self.remove_metrics()
        for path in (self.board, self._lock):
            path.unlink(missing_ok=True)
        with suppress(OSError):  # it may contain files of others
            self.path.rmdir()

    def remove_metrics(self) -> None:
        """Remove the files of the app's own metrics, at the end and at a new start. A killed primary leaves them."""
        with suppress(OSError):  # there are none, or files of others
            for path in self.metrics.glob("*.db"):
                path.unlink(missing_ok=True)
            self.metrics.rmdir()
