"""The command `demo`."""

import sys

import click

from everycore.cli import RedisServerError, fail


@click.command()
@click.option("--url", help="Fire at this running server instead of one of our own.")
@click.option("--requests", default=200, show_default=True, type=click.IntRange(1, 100_000))
@click.option("--workers", default=4, show_default=True, type=click.IntRange(2, 64))
@click.option("--chaos", is_flag=True, help="Kill and reload workers meanwhile (of our own server).")
@click.pass_obj
def demo(app: str, url: str | None, requests: int, workers: int, chaos: bool) -> None:
    """Show what each worker counted in its memory beside what Redis counted. Exit 1 if Redis is not exact."""
    from everycore_demo.show import NoAnswerError, own_server, show

    try:
        exact = show(url, requests) if url else own_server(app, requests, workers, chaos)
    except (RedisServerError, NoAnswerError) as error:
        fail(str(error))
    sys.exit(0 if exact else 1)
