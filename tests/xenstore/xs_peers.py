"""What both sides of the differential test share: a client, and a guest's half of a ring."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

from xenpy.abi.xs_wire import XENSTORE_RING_SIZE, MsgType, RingOffset
from xenpy.pv.xenstore.wire import Message, MessageReader, encode

if TYPE_CHECKING:
    from collections.abc import Callable

Event = tuple[bytes, ...]


class Transport(Protocol):
    """Bytes to and from one server; `receive` waits for some."""

    def send(self, data: bytes) -> None: ...
    def receive(self) -> bytes: ...
    def close(self) -> None: ...


class Client:
    """One connection: requests with their replies, and the watch events that came in between."""

    def __init__(self, transport: Transport, name: str) -> None:
        self.transport = transport
        self.name = name
        self.events: deque[Event] = deque()
        self._reader = MessageReader()
        self._req_id = 0

    def request(self, kind: int, payload: bytes = b"", tx_id: int = 0) -> Message:
        """Send one request and return its reply."""
        self._req_id += 1
        self.transport.send(encode(kind, self._req_id, tx_id, payload))
        while True:
            message = self._next()
            if message.type == MsgType.XS_WATCH_EVENT:
                self.events.append(tuple(message.payload.split(b"\0")[:2]))
            elif message.req_id == self._req_id:
                return message

    def take_events(self) -> list[Event]:
        """Return the watch events of everything done so far by anyone: a request's reply comes after them."""
        self.request(MsgType.XS_GET_DOMAIN_PATH, b"0\0")
        events = list(self.events)
        self.events.clear()
        return events

    def _next(self) -> Message:
        while (message := self._reader.next()) is None:
            self._reader.feed(self.transport.receive())
        return message


class GuestRing:
    """A guest's half of the shared page; `kick` sends its event channel, `wait` blocks until xenstored might have moved."""

    def __init__(self, page: memoryview, kick: Callable[[], None], wait: Callable[[], None]) -> None:
        self.page = page
        self._words = page.cast("I")  # one store for an index: the other side looks at any time
        self.kick = kick
        self.wait = wait

    def index(self, offset: RingOffset) -> int:
        return self._words[offset // 4]

    def set_index(self, offset: RingOffset, value: int) -> None:
        self._words[offset // 4] = value & 0xFFFFFFFF

    def put(self, data: bytes) -> int:
        """Put what there is room for into the request ring, without an event; return how much."""
        prod, cons = self.index(RingOffset.req_prod), self.index(RingOffset.req_cons)
        data = data[: XENSTORE_RING_SIZE - ((prod - cons) & 0xFFFFFFFF)]
        for i, byte in enumerate(data):
            self.page[RingOffset.req + (prod + i) % XENSTORE_RING_SIZE] = byte
        self.set_index(RingOffset.req_prod, prod + len(data))
        return len(data)

    def take(self) -> bytes:
        """Take what the response ring holds now, without an event."""
        prod, cons = self.index(RingOffset.rsp_prod), self.index(RingOffset.rsp_cons)
        length = (prod - cons) & 0xFFFFFFFF
        data = bytes(self.page[RingOffset.rsp + (cons + i) % XENSTORE_RING_SIZE] for i in range(length))
        self.set_index(RingOffset.rsp_cons, prod)
        return data

    def send(self, data: bytes) -> None:
        while data:
            sent = self.put(data)
            data = data[sent:]
            if sent:
                self.kick()
            else:
                self.wait()

    def receive(self) -> bytes:
        while not (data := self.take()):
            self.wait()
        self.kick()
        return data

    def close(self) -> None:
        self._words.release()
        self.page.release()


class System(Protocol):
    """A xenstored with the domains around it."""

    def connect(self, name: str) -> Client:
        """Open a privileged connection."""

    def create(self, domid: int) -> Client:
        """Make a domain known to the hypervisor; its ring works once it is introduced."""

    def port(self, domid: int) -> int:
        """Return the event channel port to introduce a domain with."""

    def shutdown(self, domid: int) -> None:
        """Let a domain shut down."""

    def resume(self, domid: int) -> None:
        """Let a domain that shut down run again; RESUME tells xenstored."""

    def destroy(self, domid: int) -> None:
        """Let the hypervisor forget a domain."""

    def close(self) -> None:
        """End it."""
