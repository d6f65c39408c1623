"""Every end a child can meet has words, and only two of them are as asked."""

from .endings import as_asked, manner


def test_every_way_to_die_has_words() -> None:
    assert all(manner(number) for number in range(1, 65))
    assert manner(9) == "was killed by SIGKILL"
    assert manner(40) == "was killed by signal 40"
    assert manner(3 << 8) == "exited with code 3"


def test_only_zero_and_sigterm_are_as_asked() -> None:
    assert as_asked(0)
    assert as_asked(15)
    assert not as_asked(9)
    assert not as_asked(1 << 8)
