"""Every end a child can meet has words, and only two of them are as asked."""

from everycore.server.children import describe_exit, exited_as_requested


def test_describe_exit_names_every_status() -> None:
    assert all(describe_exit(number) for number in range(1, 65))
    assert describe_exit(9) == "was killed by SIGKILL"
    assert describe_exit(40) == "was killed by signal 40"
    assert describe_exit(3 << 8) == "exited with code 3"


def test_exited_as_requested_is_zero_or_sigterm() -> None:
    assert exited_as_requested(0)
    assert exited_as_requested(15)
    assert not exited_as_requested(9)
    assert not exited_as_requested(1 << 8)
