"""`status --watch`: the running cluster in a terminal, for people without a browser.

rich is imported by this room alone. It draws boards and knows no process.
"""

import time
from collections.abc import Callable
from contextlib import suppress

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from everycore.server.scoreboard import Snapshot, WorkerRow

EVERY = 1.0  # seconds
COLORS = {"ready": "green", "retiring": "yellow", "draining": "yellow", "starting": "cyan"}
HEARTBEAT_TIMEOUT = 2.0  # seconds without a heartbeat, shown in red
BAR = 12  # characters


def watch(snapshot: Callable[[], Snapshot], gone: Callable[[], bool], headline: Callable[[Snapshot], str]) -> None:
    """Draw `snapshot()` each second until `gone()` or Ctrl-C. headline: what is said above the table."""
    console = Console()
    before, looked = snapshot(), time.monotonic() - EVERY
    with suppress(KeyboardInterrupt), Live(console=console, screen=True, auto_refresh=False) as live:
        while not gone():
            seen, now = snapshot(), time.monotonic()
            drawn = render(seen, before, now - looked, headline(seen))
            if console.is_terminal:
                live.update(drawn, refresh=True)
            else:
                console.print(drawn)
            before, looked = seen, now
            time.sleep(EVERY)


def render(seen: Snapshot, before: Snapshot, seconds: float, headline: str) -> Group:
    """The board, and what was answered in the `seconds` since `before`."""
    answered = {worker.pid: worker.requests for worker in before.workers}
    rates = [max(0, worker.requests - answered.get(worker.pid, 0)) / seconds for worker in seen.workers]
    most = max(rates, default=0) or 1.0
    table = Table(box=None, expand=False, padding=(0, 1, 0, 0))
    for name in ("worker", "pid", "gen"):
        table.add_column(name, justify="right")
    table.add_column("state")
    for name in ("age s", "conns", "busy", "MiB", "lag ms", "req/s"):
        table.add_column(name, justify="right")
    table.add_column("")
    for worker, rate in zip(seen.workers, rates, strict=True):
        table.add_row(*_cells(worker), f"{rate:.0f}", Text("█" * round(BAR * rate / most), "green"))
    total = max(0, seen.requests - before.requests) / seconds
    return Group(Text(headline), table, Text(f"{total:.0f} requests/s", style="bold"))


def _cells(worker: WorkerRow) -> list[Text]:
    silent = worker.heartbeat_age_s >= HEARTBEAT_TIMEOUT
    state = Text(
        f"silent {worker.heartbeat_age_s:.0f} s" if silent else worker.state,
        style="red" if silent else COLORS.get(worker.state, ""),
    )
    numbers = (worker.age_s, worker.connections, worker.in_flight, worker.rss_bytes / 2**20)
    return [
        *(Text(str(number)) for number in (worker.slot, worker.pid, worker.generation)),
        state,
        *(Text(f"{number:.0f}") for number in numbers),
        Text(f"{worker.lag_ms:.1f}"),
    ]
