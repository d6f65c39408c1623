"""What every suite is given: the peers, the Redis, how many rounds, and where to say how far it is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from rich.console import Console

from .peers import Peer
from .redis_server import RedisServer
from .server import Server

T = TypeVar("T")


@dataclass
class Context:
    """quick: a smoke run, whose figures mean nothing. peers, tuned: those that are installed, ours first.

    commands: the command line of each server that was started, by its name.
    """

    rounds: int
    quick: bool
    peers: list[Peer]
    redis: RedisServer
    missing: list[str]
    console: Console
    tuned: list[Peer] = field(default_factory=list)
    commands: dict[str, str] = field(default_factory=dict)

    def say(self, text: str) -> None:
        """One line of progress."""
        self.console.print(f"[dim]{text}[/dim]", highlight=False)

    def start(self, peer: Peer, workers: int = 2, app: str = "app", wait: bool = True, **environ: str) -> Server:
        """A server for a `with` block, on an empty Redis; `environ` for it alone (HANG_TIMEOUT="2")."""
        self.redis.flush()
        self.commands[peer.name] = peer.line()
        return Server(peer, self.redis.url, workers, app, environ, wait)


def interleaved(peers: Sequence[T], rounds: int) -> Iterator[tuple[int, T]]:
    """A B C A B C: what changes on the machine meanwhile falls on all alike."""
    for number in range(rounds):
        for peer in peers:
            yield number, peer
