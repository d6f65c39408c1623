"""The template: fetched, asked for its releases, and rendered with the answers of a project."""

import importlib.util
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .commands import UpdateError, git, run

HOSTS = {
    "gh": "https://github.com/{}.git",
    "gl": "https://gitlab.com/{}.git",
    "bb": "https://bitbucket.org/{}.git",
}
RELEASE = re.compile(r"v?(\d+)\.(\d+)\.(\d+)")
VERSION_FILE = "}}/src/everycore/VERSION"  # the end of its path: the folder before has a name in braces
COOKIECUTTER = "cookiecutter>=2.7.1"


def numbers(version: str) -> tuple[int, ...]:
    """Give a version in a form that compares: "0.10.0" is newer than "0.9.0"."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


class Template:
    """A clone of the template in `workspace`, where everything else that is made here goes too."""

    def __init__(self, source: str, project: Path, workspace: Path) -> None:
        """Fetch the template.

        Args:
            source: A URL, an abbreviation such as gh:org/name, or a path, which counts from `project`.
            project: The project that is updated.
            workspace: An empty folder.

        Raises:
            UpdateError: It cannot be fetched.
        """
        scheme, _, rest = source.partition(":")
        url = HOSTS[scheme].format(rest) if scheme in HOSTS else source
        local = project / Path(source).expanduser()
        where = str(local.resolve()) if local.exists() else url
        self.source = source
        self._workspace = workspace
        self._clone = workspace / "template"
        self._python: Path | None = None
        run(
            ["git", "clone", "--quiet", "--config", "core.autocrlf=false", "--", where, self._clone],
            workspace,
            f"the template cannot be fetched from {source}. Check the network, or name another place: "
            "make update FROM=url-or-path. git says",
            f"Fetching the template from {source} ",
        )

    def newest_release(self) -> str:
        """Find the tag with the highest version.

        Raises:
            UpdateError: No tag is a version.
        """
        releases = [tag for tag in git(self._clone, "tag", "--list").splitlines() if RELEASE.fullmatch(tag)]
        if not releases:
            raise UpdateError(
                f"the template {self.source} has no release, which is a tag such as v0.2.0. "
                "Name a branch or a commit: make update TO=main"
            )
        return max(releases, key=numbers)

    def find(self, *names: str) -> str:
        """Find the commit of the first tag, branch or commit that exists, "" if none does."""
        for name in filter(None, names):
            for reference in (f"refs/tags/{name}", f"refs/remotes/origin/{name}", name):
                try:
                    return git(self._clone, "rev-parse", "--verify", "--end-of-options", f"{reference}^{{commit}}")
                except UpdateError:
                    continue
        return ""

    def is_before(self, one: str, other: str) -> bool:
        """Tell whether commit `one` is a part of the history of `other`."""
        return git(self._clone, "merge-base", one, other) == one

    def version_at(self, commit: str) -> str:
        """Read the engine's version, "" if there is no engine at that commit."""
        names = git(self._clone, "ls-tree", "-r", "--name-only", commit).splitlines()
        found = [name for name in names if name.endswith(VERSION_FILE)]
        return git(self._clone, "show", f"{commit}:{found[0]}") if found else ""

    def render(self, commit: str, version: str, answers: Mapping[str, Any]) -> Path:
        """Make a project as the template was at a commit. A question without an answer gets its default.

        Raises:
            UpdateError: The template refuses the answers, or cookiecutter cannot be installed.
        """
        python = self._cookiecutter()
        git(self._clone, "checkout", "--quiet", "--force", "--detach", commit)
        output = self._workspace / f"rendered-{commit}"
        # Nothing is read from the user's own configuration, and nothing is kept in the home folder.
        config = self._workspace / "cookiecutter.json"
        config.write_text(json.dumps({"cookiecutters_dir": str(output), "replay_dir": str(self._workspace / "replay")}))
        command: list[str | Path] = [python, "-m", "cookiecutter", self._clone, "--no-input", "--accept-hooks", "yes"]
        command += ["--config-file", config, "--output-dir", output]
        command += [f"{name}={answer}" for name, answer in answers.items()]
        failed = f"version {version} cannot be made with the answers of this project. cookiecutter says"
        doing = f"Making version {version} with your answers "
        # cookiecutter leaves each hook that it has rendered in the folder for temporary files.
        run(command, self._workspace, failed, doing, environ={"TMPDIR": str(self._workspace)})
        (made,) = [path for path in output.iterdir() if path.is_dir()]
        return made

    def _cookiecutter(self) -> Path:
        """A Python that has cookiecutter: this one, or one made for the purpose."""
        if self._python is None:
            self._python = Path(sys.executable)
            if importlib.util.find_spec("cookiecutter") is None:
                venv = self._workspace / "venv"
                self._python = venv / "bin" / "python"
                failed = "cookiecutter cannot be installed. Install it into .venv, and try again. pip says"
                run([sys.executable, "-m", "venv", venv], self._workspace, failed, "Making a place for cookiecutter ")
                pip: list[str | Path] = [
                    self._python,
                    "-m",
                    "pip",
                    "install",
                    "--quiet",
                    "--disable-pip-version-check",
                    COOKIECUTTER,
                ]
                run(pip, self._workspace, failed, "Installing cookiecutter ")
        return self._python
