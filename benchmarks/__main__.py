"""Measures all suites, or those named: `python -m benchmarks [suite ...] [--rounds N] [--quick]`."""

import argparse
import importlib
import pkgutil
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable
from datetime import datetime
from types import ModuleType

from rich.console import Console

from . import machine, redis_server, report, setup, suites
from .context import Context
from .peers import PEERS, TUNED
from .redis_server import RedisServer
from .server import ServerError

ROUNDS, QUICK_ROUNDS = 3, 1
WIDTH = 160  # columns, where there is no terminal to ask


def main() -> int:
    found = find_suites()
    arguments = parse_arguments(found)
    console = Console(stderr=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or the servers would outlive us
    try:
        missing = setup.prepare(lambda text: console.print(f"[dim]{text}[/dim]", highlight=False))
    except setup.SetupError as error:
        console.print(f"error: {error}", markup=False)
        return 1
    for sentence in missing:
        console.print(sentence, style="yellow")
    if redis_server.find() is None:
        return 1
    peers = [peer for peer in PEERS if peer.installed()]
    with RedisServer() as redis:
        rounds = arguments.rounds or (QUICK_ROUNDS if arguments.quick else ROUNDS)
        tuned = [peer for peer in TUNED if peer.installed()]
        context = Context(rounds, arguments.quick, peers, redis, missing, console, tuned)
        return 0 if measure_all(arguments.suites or found, found, context) else 1


def measure_all(names: Iterable[str], found: dict[str, ModuleType], context: Context) -> bool:
    """Whether each suite came to its end. One that does not leaves the results of the others alone."""
    complete = True
    for name in names:
        try:
            measure(name, found, context)
        except (ServerError, OSError, RuntimeError, subprocess.SubprocessError) as error:
            context.console.print(f"error: {name}: {error}", markup=False)
            complete = False
    return complete


def measure(name: str, found: dict[str, ModuleType], context: Context) -> None:
    load_before = machine.load_average()
    context.commands.clear()
    results = found[name].run(context)
    if not results:
        return
    entry = {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "rounds": context.rounds,
        "quick": context.quick,
        "load_before": load_before,
        "load_after": machine.load_average(),
        "machine": machine.describe(),
        "versions": machine.versions(),
        "commands": dict(context.commands),
        "results": results,
    }
    report.save(report.folder(context.quick), name, entry, found)
    terminal = Console(width=None if sys.stdout.isatty() else WIDTH)
    for table in found[name].table(results):
        terminal.print(table.rich(), "")


def find_suites() -> dict[str, ModuleType]:
    names = sorted(module.name for module in pkgutil.iter_modules(suites.__path__))
    modules = [importlib.import_module(f"{suites.__name__}.{name}") for name in names]
    return {module.NAME: module for module in modules}


def parse_arguments(found: dict[str, ModuleType]) -> argparse.Namespace:
    about = "\n".join(f"  {name:<12} {(module.__doc__ or '').splitlines()[0]}" for name, module in found.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=f"The generated app beside its peers. Suites:\n{about}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("suites", nargs="*", metavar="suite", help="which to run; all by default")
    parser.add_argument("--rounds", type=int, help=f"of each peer, interleaved; {ROUNDS} by default")
    parser.add_argument(
        "--quick", action="store_true", help="see that all works; its figures go to build/bench/results"
    )
    arguments = parser.parse_args()
    if unknown := set(arguments.suites) - set(found):
        parser.error(f"no such suite: {', '.join(sorted(unknown))}. There are: {', '.join(found)}")
    return arguments


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted; everything that was started is stopped")
