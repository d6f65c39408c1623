"""`status --watch`: the status of the running server in a terminal."""

import time
from collections.abc import Callable
from contextlib import suppress

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from everycore.server.scoreboard import Snapshot, WorkerRow

INTERVAL = 1.0  # seconds
COLORS = {"ready": "green", "retiring": "yellow", "draining": "yellow", "starting": "cyan"}
HEARTBEAT_TIMEOUT = 2.0  # seconds without a heartbeat, after which a worker is shown in red
BAR_WIDTH = 12  # characters


def watch(snapshot: Callable[[], Snapshot], has_ended: Callable[[], bool], headline: Callable[[Snapshot], str]) -> None:
    """Draw the status every second until the server has ended or Ctrl-C.

    Args:
        snapshot: Returns the scoreboard at this moment.
        has_ended: Returns whether the server has ended.
        headline: Returns the text above the table.
    """
    console = Console()
    before, taken = snapshot(), time.monotonic() - INTERVAL
    with suppress(KeyboardInterrupt), Live(console=console, screen=True, auto_refresh=False) as live:
        while not has_ended():
            current, now = snapshot(), time.monotonic()
            drawn = render(current, before, now - taken, headline(current))
            if console.is_terminal:
                live.update(drawn, refresh=True)
            else:
                console.print(drawn, soft_wrap=True)  # a pipe has no width
            before, taken = current, now
            time.sleep(INTERVAL)


def render(current: Snapshot, before: Snapshot, seconds: float, headline: str) -> Group:
    """Return the table of all workers.

    Args:
        current: The scoreboard to show.
        before: An earlier scoreboard, from which the rates are computed.
        seconds: The time between the two.
        headline: The text above the table.
    """
    requests = {worker.pid: worker.requests for worker in before.workers}
    rates = [max(0, worker.requests - requests.get(worker.pid, 0)) / seconds for worker in current.workers]
    highest = max(rates, default=0) or 1.0
    table = Table(box=None, expand=False, padding=(0, 1, 0, 0))
    for name in ("worker", "pid", "gen"):
        table.add_column(name, justify="right")
    table.add_column("state")
    for name in ("age s", "conns", "busy", "MiB", "lag ms", "req/s"):
        table.add_column(name, justify="right")
    table.add_column("")
    for worker, rate in zip(current.workers, rates, strict=True):
        table.add_row(*_cells(worker), f"{rate:.0f}", Text("█" * round(BAR_WIDTH * rate / highest), "green"))
    total = max(0, current.requests - before.requests) / seconds
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
