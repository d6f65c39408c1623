"""The command `demo`."""

import sys

import click

from everycore.cli import RedisServerError, fail


@click.command()
@click.option("--url", help="Use this running server instead of starting one.")
@click.option(
    "--requests", default=200, show_default=True, type=click.IntRange(1, 100_000), help="Number of requests to send."
)
@click.option(
    "--workers", default=4, show_default=True, type=click.IntRange(2, 64), help="Workers of the server that it starts."
)
@click.option("--chaos", is_flag=True, help="Kill and reload workers of that server during the requests.")
@click.pass_obj
def demo(app: str, url: str | None, requests: int, workers: int, chaos: bool) -> None:
    """Count requests in each worker's memory and in Redis.

    It prints both counts, and exits with 1 if the count in Redis is not exact.
    """
    from everycore_demo.show import NoResponseError, show, show_on_own_server

    try:
        exact = show(url, requests) if url else show_on_own_server(app, requests, workers, chaos)
    except (RedisServerError, NoResponseError) as error:
        fail(str(error))
    sys.exit(0 if exact else 1)
