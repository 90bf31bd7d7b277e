"""A connected frontend: its queues, its wishes, and the frames between them and the link.

Everything is called in the loop's thread under the host's lock; FrontendError (GrantError is one) and XenError end the
connection.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from xenpy.abi.netif import (
    NETIF_CTRL_REQUEST,
    NETIF_CTRL_RESPONSE,
    NETIF_CTRL_SLOT_SIZE,
    NETIF_RSP_ERROR,
    NETIF_RSP_OKAY,
)
from xenpy.devices.ring import BackRing
from xenpy.devices.vif.coalesce import coalesce
from xenpy.devices.vif.flow import Steering
from xenpy.devices.vif.frame import MAX_FRAME, Frame, Offloads
from xenpy.devices.vif.link import BATCH
from xenpy.devices.vif.offload import adapt
from xenpy.devices.vif.queue import RxRing, TxRing
from xenpy.devices.vif.slots import rx_slots
from xenpy.errors import FrontendError
from xenpy.memory import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from xenpy.devices.frontend import FrontendNodes
    from xenpy.devices.vif.slots import Multicast, TxPacket
    from xenpy.devices.xenbus import Services
    from xenpy.pv.gnttab import GrantMapping

MAX_QUEUES: Final = 4
"""More would not make one interpreter any faster."""
_MAX_GROUPS: Final = 64
_ROUNDS: Final = 4
"""Batches that one queue may send before others have their turn."""
_GROUP: Final = 0x01
_BROADCAST: Final = b"\xff" * 6


@dataclass(slots=True)
class Queue:
    """A pair of rings and our ports for them, which may be the same one."""

    tx: TxRing
    rx: RxRing
    tx_port: int
    rx_port: int


class Connection:
    """What a frontend has written down, mapped and bound; `on_event` is called in a vCPU's thread when it has work for us.

    Raises FrontendError, GrantError or XenError with nothing left mapped or bound.
    """

    def __init__(self, services: Services, domid: int, nodes: FrontendNodes, on_event: Callable[[], None]) -> None:
        self._services = services
        self._domid = domid
        self._on_event = on_event
        if not nodes.flag("request-rx-copy"):
            raise FrontendError(f"{nodes.path}: request-rx-copy is not 1, and there is no other way to receive")
        self.offloads = _offloads(nodes)
        self.filtering = False
        self._groups: set[bytes] = set()
        self._rest: list[Frame] = []
        count = nodes.number("multi-queue-num-queues", 1, low=1, high=MAX_QUEUES)
        with ExitStack() as stack:
            self._queues = [
                self._queue(nodes if count == 1 else nodes.below(f"queue-{index}"), stack) for index in range(count)
            ]
            self._steering = Steering(count, self._read_page)
            self._control = self._control_ring(nodes, stack)
            self._stack = stack.pop_all()

    def _queue(self, nodes: FrontendNodes, stack: ExitStack) -> Queue:
        tx = TxRing(self._ring_page(nodes.gref("tx-ring-ref"), stack), self._map_page)
        stack.callback(tx.ring.close)
        rx = RxRing(self._ring_page(nodes.gref("rx-ring-ref"), stack), self._map_page)
        stack.callback(rx.ring.close)
        if nodes.text("event-channel-tx", ""):
            return Queue(
                tx,
                rx,
                self._bind(nodes.port("event-channel-tx"), stack),
                self._bind(nodes.port("event-channel-rx"), stack),
            )
        port = self._bind(nodes.port("event-channel"), stack)
        return Queue(tx, rx, port, port)

    def _control_ring(self, nodes: FrontendNodes, stack: ExitStack) -> tuple[BackRing, int] | None:
        if not nodes.text("ctrl-ring-ref", ""):
            return None
        ring = BackRing([self._ring_page(nodes.gref("ctrl-ring-ref"), stack)], NETIF_CTRL_SLOT_SIZE)
        stack.callback(ring.close)
        return ring, self._bind(nodes.port("event-channel-ctrl"), stack)

    def _ring_page(self, gref: int, stack: ExitStack) -> memoryview:
        return stack.enter_context(self._services.map_page(self._domid, gref)).view

    def _bind(self, port: int, stack: ExitStack) -> int:
        ours = self._services.bind(self._domid, port, self._on_event)
        stack.callback(self._services.unbind, ours)
        return ours

    def _map_page(self, gref: int, readonly: bool) -> GrantMapping:
        return self._services.map_page(self._domid, gref, readonly=readonly)

    def _read_page(self, gref: int, size: int) -> bytes:
        with self._map_page(gref, True) as page:
            return bytes(page.view[:size])

    def close(self) -> None:
        """Unbind and unmap everything."""
        self._stack.close()

    # -- from the guest -----------------------------------------------------------------------------------------------

    def transmit(self, send: Callable[[Sequence[Frame]], None], may_send: Callable[[int], bool]) -> bool:
        """Take what the guest's queues hold and `send` it, in batches; return whether there is more to do at once.

        `may_send` is asked for each packet with its size; when it says no, the packet stays where it is.
        """
        again = False
        for queue in self._queues:
            again |= self._transmit(queue, send, may_send)
        return again

    def _transmit(self, queue: Queue, send: Callable[[Sequence[Frame]], None], may_send: Callable[[int], bool]) -> bool:
        for _ in range(_ROUNDS):
            full = self._send_batch(queue, send, may_send)
            if queue.tx.ring.push():
                self._services.notify(queue.tx_port)
            if not full:
                return False
        return True

    def _send_batch(
        self, queue: Queue, send: Callable[[Sequence[Frame]], None], may_send: Callable[[int], bool]
    ) -> bool:
        """Send a batch of packets and put the responses; return whether there is, or may be, more to send."""
        frames: list[Frame] = []
        done: list[tuple[TxPacket, int]] = []
        pages: list[GrantMapping] = []
        more = True
        try:
            while len(done) < BATCH:
                if not queue.tx.waiting():
                    if queue.tx.ring.more():
                        continue
                    more = False
                    break
                packet = queue.tx.next_packet()
                if not may_send(packet.size):
                    more = False
                    break
                queue.tx.take(packet)
                if packet.multicast:
                    done.append((packet, self._change_groups(packet.multicast)))
                    continue
                frame = queue.tx.open_frame(packet, pages)
                done.append((packet, NETIF_RSP_ERROR if frame is None else NETIF_RSP_OKAY))
                if frame is not None:
                    frames.append(frame)
            if frames:
                send(frames)
        finally:
            for page in pages:
                page.close()
        for packet, status in done:
            queue.tx.answer(packet, status)
        return more

    def _change_groups(self, changes: Iterable[Multicast]) -> int:
        for change in changes:
            if not change.add:
                self._groups.discard(change.address)
            elif len(self._groups) < _MAX_GROUPS:
                self._groups.add(change.address)
            else:
                return NETIF_RSP_ERROR
        return NETIF_RSP_OKAY

    # -- to the guest -------------------------------------------------------------------------------------------------

    def deliver(self, frames: Sequence[Frame]) -> int:
        """Give the guest frames; return how many, from the first on, are dealt with. The others need more room."""
        touched: set[int] = set()
        taken = 0
        try:
            self._rest = self._put(self._rest, touched)
            for frame, count in self._joined(frames):
                if self._rest:
                    break
                if self._is_unwanted(frame):
                    taken += count
                    continue
                pieces = list(adapt(frame, self.offloads))
                rest = self._put(pieces, touched)
                if rest and len(rest) == len(pieces):
                    break
                self._rest = [piece.keep() for piece in rest]
                taken += count
        finally:
            for index in touched:
                queue = self._queues[index]
                if queue.rx.ring.push():
                    self._services.notify(queue.rx_port)
        return taken

    def _joined(self, frames: Sequence[Frame]) -> list[tuple[Frame, int]]:
        """Return frames, each with the number of those offered that it stands for."""
        if len(frames) > 1 and (self.offloads.gso4 or self.offloads.gso6):
            return coalesce(frames, self.offloads)
        return [(frame, 1) for frame in frames]

    def _put(self, frames: list[Frame], touched: set[int]) -> list[Frame]:
        """Put frames into the queues they belong to; return those from the first on that there is no room for."""
        for number, frame in enumerate(frames):
            index = self._steering.choose(frame)
            queue = self._queues[index]
            if not queue.rx.has_room(rx_slots(frame)):
                return frames[number:]
            queue.rx.put(frame)
            touched.add(index)
        return []

    def _is_unwanted(self, frame: Frame) -> bool:
        if not self.filtering or not frame.head[0] & _GROUP:
            return False
        address = bytes(frame.head[:6])
        return address != _BROADCAST and address not in self._groups

    # -- the control ring ---------------------------------------------------------------------------------------------

    def serve_control(self) -> None:
        """Answer what is in the control ring now."""
        if self._control is None:
            return
        ring, port = self._control
        for request in ring.take():
            ident, kind, *data = NETIF_CTRL_REQUEST.unpack(request)
            status, value = self._steering.control(kind, (data[0], data[1], data[2]))
            ring.put(NETIF_CTRL_RESPONSE.pack(ident, kind, status, value))
        if ring.push():
            self._services.notify(port)
        if ring.more():
            self._on_event()


def _offloads(nodes: FrontendNodes) -> Offloads:
    """Return what a frontend says that it does itself."""
    sg = nodes.flag("feature-sg")
    csum, csum6 = not nodes.flag("feature-no-csum-offload"), nodes.flag("feature-ipv6-csum-offload")
    return Offloads(
        csum=csum,
        csum6=csum6,
        gso4=sg and csum and nodes.flag("feature-gso-tcpv4"),
        gso6=sg and csum6 and nodes.flag("feature-gso-tcpv6"),
        max_size=MAX_FRAME if sg else PAGE_SIZE,
    )
