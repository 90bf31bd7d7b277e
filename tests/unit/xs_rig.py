"""Connections to a store, spoken to message by message."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from xenpy.abi.xs_wire import MsgType
from xenpy.pv.xenstore.wire import Message, MessageReader, encode

if TYPE_CHECKING:
    from xenpy.errors import Errno
    from xenpy.pv.xenstore import Connection, Xenstore

OK = b"OK\0"


class Reply(NamedTuple):
    """A reply's type and payload."""

    type: int
    payload: bytes


def error(errno: Errno) -> Reply:
    """Return the reply that reports an errno."""
    return Reply(MsgType.XS_ERROR, errno.name.encode() + b"\0")


class Peer:
    """One client of a store."""

    def __init__(self, store: Xenstore, domid: int = 0) -> None:
        self.store = store
        self.connection: Connection = store.connect(domid)
        if domid:
            store.introduce(domid, self.connection)
        self._reader = MessageReader()
        self.events: list[tuple[str, str]] = []

    def messages(self) -> list[Message]:
        """Return everything that the server has sent."""
        self._reader.feed(self.connection.take_output())
        return list(iter(self._reader.next, None))

    def ask(self, kind: MsgType, *strings: str | bytes, tx: int = 0, raw: bytes = b"") -> Reply:
        """Send strings, each ended by NUL, and raw bytes after them; return the reply and keep the events."""
        encoded = [string.encode() if isinstance(string, str) else string for string in strings]
        self.connection.feed(encode(kind, 7, tx, b"".join(string + b"\0" for string in encoded) + raw))
        reply = None
        for message in self.messages():
            if message.type == MsgType.XS_WATCH_EVENT:
                self._keep(message)
            else:
                assert reply is None, "more than one reply"
                assert (message.req_id, message.tx_id) == (7, tx)
                reply = Reply(message.type, message.payload)
        assert reply is not None
        return reply

    def _keep(self, message: Message) -> None:
        assert message.req_id == message.tx_id == 0
        path, token, end = message.payload.decode().split("\0")
        assert end == ""
        self.events.append((path, token))

    def take_events(self) -> list[tuple[str, str]]:
        """Return the watch events so far."""
        for message in self.messages():
            assert message.type == MsgType.XS_WATCH_EVENT
            self._keep(message)
        events, self.events = self.events, []
        return events

    def ok(self, kind: MsgType, *strings: str | bytes, tx: int = 0, raw: bytes = b"") -> bytes:
        """Like `ask`, for a request that must succeed; return the payload."""
        reply = self.ask(kind, *strings, tx=tx, raw=raw)
        assert reply.type == kind, reply
        return reply.payload

    def read(self, path: str, tx: int = 0) -> bytes:
        return self.ok(MsgType.XS_READ, path, tx=tx)

    def write(self, path: str, value: bytes, tx: int = 0) -> None:
        assert self.ok(MsgType.XS_WRITE, path, tx=tx, raw=value) == OK

    def start(self) -> int:
        """Open a transaction."""
        return int(self.ok(MsgType.XS_TRANSACTION_START, "")[:-1])

    def end(self, tx: int, verdict: str = "T") -> Reply:
        return self.ask(MsgType.XS_TRANSACTION_END, verdict, tx=tx)

    def watch(self, path: str, token: str, *depth: str) -> None:
        """Set a watch and swallow its first event."""
        assert self.ok(MsgType.XS_WATCH, path, token, *depth) == OK
        assert self.take_events() == [(path, token)]
