"""Messages between a primary and a template process: none is lost, in whatever pieces they come."""

from everycore.server.channel import Channel


def test_take_yields_all_that_has_arrived() -> None:
    ours, theirs = Channel.pair()
    assert list(ours.take()) == []
    for number in range(3):
        theirs.send(number=number)
    assert [message["number"] for message in ours.take()] == [0, 1, 2]
    assert not ours.ended
    theirs.send(number=3)
    theirs.close()
    assert list(ours.take()) == [{"number": 3}]
    assert ours.ended
    ours.close()


def test_take_of_the_blocking_end_does_not_wait() -> None:
    ours, theirs = Channel.pair()
    assert list(theirs.take()) == []
    ours.send(slot=0)
    ours.send(slot=1)
    assert [message["slot"] for message in theirs.take()] == [0, 1]
    ours.close()
    theirs.close()


def test_take_keeps_the_beginning_of_a_message() -> None:
    ours, theirs = Channel.pair()
    theirs._socket.send(b'{"text": "two par')
    assert list(ours.take()) == []
    theirs._socket.send(b'ts"}\n{"next"')
    assert list(ours.take()) == [{"text": "two parts"}]
    ours.close()
    theirs.close()


def test_receive_waits_for_each_message_and_sees_the_end() -> None:
    ours, theirs = Channel.pair()
    ours.send(slot=0)
    ours.send(slot=1)
    assert theirs.receive() == {"slot": 0}
    assert theirs.receive() == {"slot": 1}
    ours.finish()
    assert theirs.receive() is None
    theirs.send(late=True)
    assert list(ours.take()) == [{"late": True}]
    ours.close()
    theirs.close()


def test_peer_that_ended_without_reading_is_an_end() -> None:
    """The kernel reports a reset then, and not the end of the file."""
    ours, theirs = Channel.pair()
    ours.send(slot=0)
    theirs.close()
    assert list(ours.take()) == []
    assert ours.ended
    ours.send(slot=1)  # is lost without an error
    ours.close()
