"""The command `make update`. Exit codes: 0 updated or nothing to do, 1 error, 2 usage."""

import argparse
import fcntl
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from everycore import manifest

from . import folders, others
from .commands import UpdateError
from .record import FILE, Record, RecordError, public_url
from .template import Template, numbers


def update(project: Path, record: Record, source: str, to: str) -> None:
    """Bring a project to another version of its template.

    Args:
        project: Its folder.
        record: What made it.
        source: A URL or a path of the template, "" for the one that is recorded.
        to: A tag, branch or commit, "" for the newest release.

    Raises:
        UpdateError: It cannot be done. The engine is the old one or the new one, never a mix.
    """
    killed = folders.recover(project)
    folders.refuse_uncommitted(project, killed)
    folders.refuse_edited(project)
    if not (source or record.template):
        raise UpdateError(
            "this project was made from a folder or a zip file. Name its template: make update FROM=url-or-path"
        )
    workspace = project / folders.OWN / "work"
    shutil.rmtree(workspace, ignore_errors=True)
    workspace.mkdir()
    template = Template(source or record.template, project, workspace)
    name = to or template.newest_release()
    goal, version = _choose(template, name)
    # Where the commit is not recorded, or not in this template, the release of that version stands in.
    start = template.find(record.commit, f"v{record.version}", record.version)
    if goal in (start, record.commit):
        if killed:
            folders.finish(project)
        print(f"This project has everycore {version} ({name}) already. Nothing was written.")
        return
    if numbers(version) < numbers(record.version) or (start and template.is_before(goal, start)):
        raise UpdateError(
            f"{name} (everycore {version}) is older than what this project has ({record.version}). "
            "An update only goes forward. To go back, restore the commit before the last update"
        )

    made = template.render(goal, version, record.answers)
    broken = manifest.differences(made / folders.ENGINE)
    if broken:
        raise UpdateError(
            f"{name} of the template is not as it says in its own MANIFEST: {broken}. Nothing was written"
        )
    changes: list[others.Change] = []
    command = ""
    if start:
        before = template.render(start, record.version, record.answers)
        comparison = others.Comparison(before, made, project)
        changes = comparison.changes
        patch = project / folders.OWN / f"{record.version}-to-{version}.patch"
        command = comparison.write_patch(patch, workspace)

    with_demo, about_demo = folders.demo_to_replace(project, made)
    folders.replace(project, made, [folders.ENGINE, *([folders.DEMO] if with_demo else [])])
    home = public_url(source) or record.template
    Record(home, goal, version, _answers(made, record)).write(project / folders.OWN)
    (project / folders.OWN / FILE).replace(project / FILE)  # so that it is never half written
    folders.finish(project)

    print(f"\n{folders.ENGINE} is replaced: everycore {record.version} -> {version} ({name}).")
    if about_demo:
        print(about_demo)
    if not start:
        print(f"The template has no commit of version {record.version}: its other files were not compared.")
        return
    _report(changes, command)


def _choose(template: Template, name: str) -> tuple[str, str]:
    """Find the commit to go to, and its version."""
    goal = template.find(name)
    if not goal:
        raise UpdateError(f"the template has no tag, branch or commit {name!r}. Try without TO for the newest release")
    version = template.version_at(goal)
    if not version:
        raise UpdateError(
            f"{template.source} has no src/everycore at {name}: it is another template, or older than version 0.2. "
            "Name the right one: make update FROM=url-or-path"
        )
    return goal, version


def _answers(made: Path, record: Record) -> dict[str, object]:
    """The answers with those of new questions."""
    try:
        return Record.read(made).answers
    except RecordError:
        return record.answers


def _report(changes: Sequence[others.Change], command: str) -> None:
    if not changes:
        print("The template changed no other file that you do not have already.")
    else:
        print("The template changed these other files too. They are not written:\n")
        width = max(len(str(change.path)) for change in changes)
        for change in changes:
            print(f"  {change.what:<8}{change.path!s:<{width}}  {change.yours}".rstrip())
    if command:
        print(f"\nRead the patch, then take it:\n\n    {command}\n")
        if any(change.path == Path("pyproject.toml") for change in changes):
            print("pyproject.toml is among them: the new engine may need what it names.")
    print("Then: make test. To undo all of it before you commit: git stash --include-untracked")


@contextmanager
def _alone(project: Path) -> Iterator[None]:
    """Hold the lock of this project's updates. It is dropped when its owner dies."""
    own = project / folders.OWN
    own.mkdir(exist_ok=True)
    (own / ".gitignore").write_text("*\n")
    with (own / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UpdateError("another update of this project is running. Wait for its end") from None
        try:
            yield
        finally:
            shutil.rmtree(own / "work", ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="make update", usage="make update [FROM=url-or-path] [TO=tag]")
    parser.add_argument("--from", dest="source", default="", help="where the template is")
    parser.add_argument("--to", default="", help="a tag, branch or commit of it")
    options = parser.parse_args(arguments)
    project = Path.cwd()
    try:
        record = Record.read(project)
        with _alone(project):
            update(project, record, options.source, options.to)
    except (UpdateError, RecordError, OSError) as error:
        print(f"error: {error}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nerror: interrupted. Run it again, or: git status", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
