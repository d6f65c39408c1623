"""The folder of a project, as `dev` and the commands beside it see it: what is watched, read and kept there."""

import hashlib
import importlib.util
import os
import secrets
from contextlib import suppress
from pathlib import Path

from everycore.cli import env_file
from everycore.cli.dev_redis import SOCKET
from everycore.environ import DEVELOPMENT, package_of
from everycore.server.run_dir import RunDir
from everycore.server.settings import default_run_dir

KEPT = ".dev"
DEFAULT_PORT = "8000"
# What `dev` sets where nobody else does. A worker that stops at a breakpoint looks like one that hangs. By default of
# LINGER, a stop takes 5 s while a browser has a page open.
DEFAULTS = {"HANG_TIMEOUT": "0", "LINGER": "0.5", "ACCESS_LOG": "on", "LOG_FORMAT": "text", "WEB_CONCURRENCY": "2"}


class Checkout:
    """The project that an app belongs to.

    Args:
        app: The app, as "module:attribute".

    Attributes:
        source: The folder that contains the app's top-level package or module. The engine and the demo are in it, too.
        folder: That folder or its parent: the one with a pyproject.toml.
        env_file: The file `.env` of the project. It may not exist.
        kept: The folder for what `dev` keeps: the data of its Redis, and the key. It may not exist.
    """

    def __init__(self, app: str) -> None:
        self.app = app
        self.source = _source_of(app)
        candidates = (self.source, self.source.parent)
        self.folder = next((each for each in candidates if (each / "pyproject.toml").exists()), self.source)
        self.env_file = self.folder / ".env"
        self.kept = self.folder / KEPT
        self._key_file = self.kept / "secret_key"

    def keep(self) -> bool:
        """Make the folder for what is kept, which git ignores, and the key. Return False if it cannot be written."""
        try:
            self.kept.mkdir(mode=0o700, exist_ok=True)
            (self.kept / ".gitignore").write_text("*\n")
            if not self._secret_key():
                self._key_file.touch(mode=0o600)
                self._key_file.write_text(secrets.token_urlsafe(32))
        except OSError:
            return False
        return True

    def environment(self) -> dict[str, str]:
        """Return the variables of development: those of this process, then those of `.env`, then the defaults.

        SECRET_KEY is the one that is kept, if there is no other, so that cookies are valid after a restart. REDIS_URL
        is missing unless this process or `.env` sets it.

        Raises:
            EnvFileError: `.env` cannot be used.
        """
        file = env_file.read(self.env_file)
        if "PORT" in os.environ and "BIND" not in os.environ:
            file.pop("BIND", None)  # it would hide the PORT of this process
        environ = {**DEFAULTS, **file, **os.environ, "APP_ENV": DEVELOPMENT}
        if not environ.get("SECRET_KEY") and not environ.get("SECRET_KEY_FILE") and (key := self._secret_key()):
            environ["SECRET_KEY"] = key
        return environ

    def environment_of_dev(self) -> dict[str, str]:
        """Return the variables with which another process uses the Redis of `dev`.

        Raises:
            EnvFileError: `.env` cannot be used.
        """
        environ = self.environment()
        environ["REDIS_URL"] = environ.get("REDIS_URL") or f"unix://{self.kept / SOCKET}"
        return environ

    def _secret_key(self) -> str:
        with suppress(OSError):
            return self._key_file.read_text().strip()
        return ""

    def run_dir(self, bind: str) -> Path:
        """Return the run directory of the `dev` server of this folder at an address."""
        port = bind.rpartition(":")[2]
        return default_run_dir(f"{package_of(self.app)}-{self._mark}-{port if port.isdecimal() else _digest(bind)}")

    def running(self) -> list[Path]:
        """Return the run directories of the `dev` servers of this folder that are running."""
        like = default_run_dir(f"*-{self._mark}-*")
        found = set(like.parent.glob(like.name))
        with suppress(env_file.EnvFileError):  # `dev` reports it, and this server was started before
            if named := env_file.read(self.env_file).get("RUN_DIR"):
                found.add(Path(named))
        return sorted(path for path in found if _is_own(path) and RunDir(path).owner() is not None)

    @property
    def _mark(self) -> str:
        return _digest(str(self.folder))


def _is_own(path: Path) -> bool:
    """Return whether a folder belongs to this user. The files of another user are not trusted, so none is opened."""
    try:
        return path.lstat().st_uid == os.getuid()
    except OSError:  # its server has just ended
        return False


def _source_of(app: str) -> Path:
    with suppress(ValueError):  # the app has no name; whoever loads it says so
        spec = importlib.util.find_spec(package_of(app))
        if spec and spec.origin:
            where = Path(spec.origin)
            return where.parent.parent if where.name == "__init__.py" else where.parent
    return Path.cwd()


def _digest(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:8]
