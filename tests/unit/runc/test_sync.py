"""The channel between a container's creator and its init."""

from __future__ import annotations

import pytest
from errdefs import Internal
from runc_bin.libcontainer.sync import Channel, Message


def test_an_error_is_read_though_its_sender_left_a_packet_unread() -> None:
    ours, theirs = Channel.pair()
    ours.send(Message.GO)
    theirs.send(Message.ERROR, "why")
    theirs.close()
    assert ours.receive() == (Message.ERROR, "why")
    assert ours.receive() is None
    with pytest.raises(BrokenPipeError):
        ours.send(Message.DONE)
    ours.close()


def test_the_end_where_a_message_was_due() -> None:
    ours, theirs = Channel.pair()
    ours.close()
    with pytest.raises(Internal, match="went away"):
        theirs.expect(Message.GO)
    theirs.close()


def test_a_long_error_is_cut() -> None:
    ours, theirs = Channel.pair()
    theirs.send(Message.ERROR, "x" * 100_000)
    got = ours.receive()
    assert got is not None
    assert len(got[1]) == 65535
    ours.close()
    theirs.close()
