"""A guest that sends requests without waiting for replies, to Debian's C xenstored and to ours."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest
from xs_oracle import Oracle
from xs_peers import GuestRing
from xs_subject import Subject

from xenpy.abi.xs_wire import MsgType
from xenpy.pv.xenstore.wire import Message, MessageReader, encode

if TYPE_CHECKING:
    from pathlib import Path

    from xs_peers import System

DOMID = 5
REQUESTS = 400
TREE = (b"/local/domain/5", b"n0\0r5\0"), (b"/local/domain/5/data", b"n5\0")


def _requests(random: Random) -> list[bytes]:
    """Return requests of every size, some of whose replies fill the ring several times over.

    The last causes no event, so that all events have come when it is answered.
    """
    requests = []
    for number in range(REQUESTS):
        path = b"data/" + random.choice((b"a", b"a/b", b"c", b"c/d"))
        kind = random.choice(
            (MsgType.XS_READ, MsgType.XS_WRITE, MsgType.XS_RM, MsgType.XS_DIRECTORY, MsgType.XS_WATCH, MsgType.XS_MKDIR)
        )
        if number == REQUESTS - 1:
            kind = MsgType.XS_READ
        payload = path + b"\0"
        if kind == MsgType.XS_WRITE:
            payload += bytes([random.choice(b"xyz")]) * random.choice((0, 1, 50, 900, 1900))
        elif kind == MsgType.XS_WATCH:
            payload += b"%d\0" % number
        requests.append(encode(kind, number, 0, payload))
    return requests


def _exchange(system: System, requests: list[bytes], random: Random) -> tuple[list[Message], set[bytes]]:
    """Send everything as fast as the ring takes it, fetch replies now and then; return replies and distinct events."""
    control = system.connect("control")
    client = system.create(DOMID)
    ring = client.transport
    assert isinstance(ring, GuestRing)
    control.request(MsgType.XS_INTRODUCE, b"%d\0000\0%d\0" % (DOMID, system.port(DOMID)))
    for path, perms in TREE:
        control.request(MsgType.XS_MKDIR, path + b"\0")
        control.request(MsgType.XS_SET_PERMS, path + b"\0" + perms)
    stream = b"".join(requests)
    reader, replies, events = MessageReader(), [], set()
    while len(replies) < len(requests):
        sent = ring.put(stream[: random.choice((1, 16, 300, 1024))])
        stream = stream[sent:]
        ring.kick()
        data = ring.take() if not sent or not stream or random.random() < 0.3 else b""
        if data:
            ring.kick()
        elif not sent:
            ring.wait()
        reader.feed(data)
        for message in iter(reader.next, None):
            if message.type == MsgType.XS_WATCH_EVENT:
                events.add(message.payload)
            else:
                replies.append(message)
    control.request(MsgType.XS_RELEASE, b"%d\0" % DOMID)
    return replies, events


@pytest.mark.parametrize("seed", range(5))
def test_a_stream_is_answered_in_order_and_as_by_xenstored(
    seed: int, xen_root: Path, stub: Path, tmp_path: Path
) -> None:
    requests = _requests(Random(seed))
    subject, oracle = Subject(), Oracle(xen_root, stub, tmp_path)
    try:
        ours, our_events = _exchange(subject, requests, Random(seed))
        reference, reference_events = _exchange(oracle, requests, Random(seed))
    finally:
        oracle.close()
        subject.close()
    assert [reply.req_id for reply in ours] == list(range(REQUESTS))
    assert ours == reference
    assert our_events == reference_events
