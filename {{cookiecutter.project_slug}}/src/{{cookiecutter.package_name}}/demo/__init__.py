"""`demo`, a command beside those of cli.py. With web/demo and tests/demo it is all there is of the demo."""

import sys

import click

from ..cli import fail


@click.command()
@click.option("--url", help="A running cluster to fire at, instead of one of our own.")
@click.option("--requests", default=200, show_default=True, type=click.IntRange(1, 100_000))
@click.option("--workers", default=4, show_default=True, type=click.IntRange(2, 64))
@click.option("--chaos", is_flag=True, help="Kill and reload workers meanwhile (of our own cluster).")
def demo(url: str | None, requests: int, workers: int, chaos: bool) -> None:
    """Show what each worker counted in memory beside what Redis counted; exit 1 if Redis is not exact."""
    from ..embedded import RedisServerError
    from .show import NoAnswerError, own_cluster, show

    try:
        exact = show(url, requests) if url else own_cluster(requests, workers, chaos)
    except (RedisServerError, NoAnswerError) as error:
        fail(str(error))
    sys.exit(0 if exact else 1)
