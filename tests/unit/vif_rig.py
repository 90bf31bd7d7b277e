"""A guest with a network driver, and a link that remembers."""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from xenbus_rig import DOMID, FakeDriver, FakeServices, FrontRing

from xenpy.abi.netif import (
    NETIF_EXTRA,
    NETIF_RX_REQUEST,
    NETIF_RX_RESPONSE,
    NETIF_RX_SLOT_SIZE,
    NETIF_TX_REQUEST,
    NETIF_TX_SLOT_SIZE,
    NETTXF_extra_info,
    NETTXF_more_data,
)
from xenpy.abi.xenbus import XenbusState
from xenpy.config.vif import VifConfig
from xenpy.devices.vif.backend import Vif
from xenpy.devices.vif.frame import ALL_OFFLOADS, Frame
from xenpy.devices.vif.link import Link
from xenpy.devices.vif.station import InLoop
from xenpy.devices.vif.switch import Switches
from xenpy.memory import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from xenpy.devices.vif.link import Sink

MAC = "00:16:3e:01:02:03"
OURS, THEIRS, BROADCAST = bytes.fromhex("00163e010203"), bytes.fromhex("525500000001"), b"\xff" * 6


def ethernet(payload: bytes, kind: int = 0x1234, dest: bytes = THEIRS, source: bytes = OURS) -> bytes:
    return dest + source + kind.to_bytes(2, "big") + payload


class FakeLoop:
    """Deadlines that come when a test says so."""

    def __init__(self) -> None:
        self.deadlines: list[tuple[float, Callable[[], None]]] = []

    def call_later(self, seconds: float, callback: Callable[[], None]) -> FakeLoop:
        self.deadlines.append((seconds, callback))
        return self

    def cancel(self) -> None:
        self.deadlines.clear()


class VifServices(FakeServices):
    """A fake host that has what a vif needs."""

    def __init__(self) -> None:
        super().__init__()
        self.loop: Any = FakeLoop()
        self.switches = Switches()

    def domain(self, domid: int) -> VifServices:
        assert domid == DOMID
        return self


class FakeLink(Link):
    """A wire with an end to look at: `sent` has the frames, flattened, in batches."""

    def __init__(self) -> None:
        self.offloads = ALL_OFFLOADS
        self.sent: list[list[Frame]] = []
        self.waiting: list[Frame] = []
        self.sink: Sink | None = None
        self.closed = 0

    def attach(self, sink: Sink) -> None:
        self.sink = sink

    def send(self, frames: Sequence[Frame]) -> None:
        self.sent.append([frame.keep() for frame in frames])

    def give(self, *frames: Frame) -> int:
        """Deliver frames, and offer again what was refused when there is room."""
        assert self.sink is not None
        self.waiting += frames
        taken = self.sink.deliver(self.waiting)
        del self.waiting[:taken]
        return taken

    def resume(self) -> None:
        if self.waiting:
            self.give()

    def close(self) -> None:
        self.closed += 1

    @property
    def frames(self) -> list[bytes]:
        return [bytes(frame.head) for batch in self.sent for frame in batch]


class Received:
    """A frame as the guest got it."""

    def __init__(self, flags: int, data: bytes, extras: list[bytes]) -> None:
        self.flags = flags
        self.data = data
        self.extras = extras


class FrontQueue:
    """The guest's end of one pair of rings; its receive buffers are where their ids say."""

    def __init__(self, services: VifServices, *, split: bool) -> None:
        self.services = services
        (tx_gfn, tx), (rx_gfn, rx) = services.page(), services.page()
        self.tx, self.rx = FrontRing([tx], NETIF_TX_SLOT_SIZE), FrontRing([rx], NETIF_RX_SLOT_SIZE)
        self.tx_gref, self.rx_gref = services.grant(tx_gfn), services.grant(rx_gfn)
        self.tx_port = services.port()
        self.rx_port = services.port() if split else self.tx_port
        self.split = split
        self.buffers: dict[int, memoryview] = {}
        self.grefs: dict[int, int] = {}
        self.next_id = 0

    def nodes(self) -> dict[str, str | int]:
        ports = {"event-channel-tx": self.tx_port, "event-channel-rx": self.rx_port}
        return {
            "tx-ring-ref": self.tx_gref, "rx-ring-ref": self.rx_gref, **(ports if self.split else {"event-channel": self.tx_port})
        }  # fmt: skip

    def post(self, count: int) -> None:
        """Offer pages to receive in."""
        for _ in range(count):
            gfn, view = self.services.page()
            self.buffers[self.next_id], self.grefs[self.next_id] = view, self.services.grant(gfn)
            self.rx.put(NETIF_RX_REQUEST.pack(self.next_id, self.grefs[self.next_id]))
            self.next_id += 1
        if self.rx.push():
            self.services.send(self.rx_port)
        self.services.pump()

    def receive(self) -> list[Received]:
        """Return the frames that have come, by the header's rules for multi-slot packets."""
        at = self.rx.rsp_cons
        slots = self.rx.take(NETIF_RX_SLOT_SIZE)
        frames: list[Received] = []
        position = 0
        while position < len(slots):
            ident, offset, flags, size = NETIF_RX_RESPONSE.unpack(slots[position])
            assert ident == at + position  # responses stay in their requests' slots
            data, extras = bytes(self.buffers[ident][offset : offset + size]), []
            first, more = flags, flags & 0x8
            position += 1
            while more:
                extras.append(slots[position])
                more = NETIF_EXTRA.unpack(slots[position])[1]
                position += 1
            while flags & 0x4:
                ident, offset, flags, size = NETIF_RX_RESPONSE.unpack(slots[position])
                assert ident == at + position
                data += bytes(self.buffers[ident][offset : offset + size])
                position += 1
            frames.append(Received(first, data, extras))
        return frames

    def queue(
        self, data: bytes, *, flags: int = 0, extras: Sequence[bytes] = (), cuts: Sequence[int] = ()
    ) -> list[int]:
        """Put a packet into the transmit ring, cut at offsets (and at pages' ends); return the ids of its slots."""
        bounds = sorted({0, len(data), *cuts, *range(0, len(data), PAGE_SIZE)})
        pieces = [data[start:end] for start, end in itertools.pairwise(bounds)]
        ids = []
        for number, piece in enumerate(pieces):
            gfn, view = self.services.page()
            view[: len(piece)] = piece
            more = NETTXF_more_data if number + 1 < len(pieces) else 0
            first = flags | (NETTXF_extra_info if extras else 0) if not number else 0
            size = len(data) if not number else len(piece)
            self.tx.put(
                NETIF_TX_REQUEST.pack(self.services.grant(gfn, readonly=True), 0, first | more, 100 + number, size)
            )
            ids.append(100 + number)
            if not number:
                for extra in extras:
                    self.tx.put(extra.ljust(NETIF_TX_SLOT_SIZE, b"\0"))
        return ids

    def push(self) -> None:
        """Show the backend what was queued, and let it work."""
        if self.tx.push():
            self.services.send(self.tx_port)
        self.services.pump()

    def send(self, data: bytes, **how: Any) -> list[int]:
        ids = self.queue(data, **how)
        self.push()
        return ids


class NetFront(FakeDriver):
    """The guest's driver of an interface with so many queues; `wishes` are further nodes."""

    def __init__(
        self,
        services: VifServices,
        vif: Vif,
        link: FakeLink,
        *,
        queues: int = 1,
        split: bool = True,
        **wishes: str | int,
    ) -> None:
        super().__init__(services, vif)
        self.vif, self.link = vif, link
        self.queues = [FrontQueue(services, split=split) for _ in range(queues)]
        self.wishes = wishes

    @property
    def first(self) -> FrontQueue:
        return self.queues[0]

    def connect(self) -> None:
        nodes: dict[str, str | int] = {"request-rx-copy": 1, "feature-rx-notify": 1, "feature-sg": 1}
        nodes.update({name.replace("_", "-"): value for name, value in self.wishes.items()})
        if len(self.queues) == 1:
            nodes |= self.first.nodes()
        else:
            nodes["multi-queue-num-queues"] = len(self.queues)
            for number, queue in enumerate(self.queues):
                nodes |= {f"queue-{number}/{name}": value for name, value in queue.nodes().items()}
        self.write(nodes)
        self.switch(XenbusState.Connected)


@contextmanager
def net_front(config: VifConfig | None = None, *, link: FakeLink | None = None, **how: Any) -> Iterator[NetFront]:
    """Make a host, a guest and an interface whose backend waits for the guest's driver."""
    services = VifServices()
    link = link or FakeLink()
    config = config or VifConfig(0, MAC)
    vif = Vif(services, DOMID, config, lambda listener: InLoop(services, DOMID, config, link, listener))
    services.pump()
    vif.start()
    services.pump()
    try:
        yield NetFront(services, vif, link, **how)
    finally:
        vif.close()
        services.pump()
        services.close()


@contextmanager
def connected(config: VifConfig | None = None, **how: Any) -> Iterator[NetFront]:
    """Make an interface and connect the guest's driver to it."""
    with net_front(config, **how) as front:
        front.connect()
        assert front.backend_state is XenbusState.Connected
        yield front
