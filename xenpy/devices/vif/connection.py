"""The queues of a connected frontend, its wishes, and the frames between them and the link.

Everything is called in one thread; FrontendError ends the connection.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from xenpy.abi.netif import NETIF_RSP_ERROR, NETIF_RSP_OKAY
from xenpy.devices.vif.coalesce import coalesce
from xenpy.devices.vif.link import BATCH
from xenpy.devices.vif.offload import adapt
from xenpy.devices.vif.pace import Pace
from xenpy.devices.vif.slots import rx_slots

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from xenpy.devices.vif.flow import Steering
    from xenpy.devices.vif.frame import Frame, Offloads
    from xenpy.devices.vif.queue import RxRing, TxRing
    from xenpy.devices.vif.slots import Multicast, TxPacket

_MAX_GROUPS: Final = 64
_ROUNDS: Final = 4
"""Batches that one queue may send before others have their turn."""
_GROUP: Final = 0x01
_BROADCAST: Final = b"\xff" * 6


@dataclass(slots=True)
class Queue:
    """A pair of rings, and how the guest is sent events for them."""

    tx: TxRing
    rx: RxRing
    notify_tx: Callable[[], None]
    notify_rx: Callable[[], None]


@dataclass(slots=True)
class Groups:
    """The group addresses that a guest wants to hear, where it said so."""

    addresses: set[bytes] = field(default_factory=set)
    on_change: Callable[[], None] | None = None
    """Called before the guest hears that its wish has been taken note of."""

    def change(self, changes: Iterable[Multicast]) -> int:
        """Follow a packet's wishes; return its status."""
        status = NETIF_RSP_OKAY
        for change in changes:
            if not change.add:
                self.addresses.discard(change.address)
            elif len(self.addresses) < _MAX_GROUPS:
                self.addresses.add(change.address)
            else:
                status = NETIF_RSP_ERROR
                break
        if self.on_change is not None:
            self.on_change()
        return status


class Connection:
    """What a frontend has written down, mapped and bound; `groups` are remembered for as long as it is connected."""

    def __init__(self, queues: Sequence[Queue], offloads: Offloads, steering: Steering, groups: Groups) -> None:
        self.offloads = offloads
        self.filtering = False
        """Whether the guest wants group frames filtered."""
        self._queues = queues
        self._steering = steering
        self._groups = groups
        self._rest: list[Frame] = []
        self._sent = 0
        self._is_ahead = False
        self._pace = Pace()

    # -- from the guest -----------------------------------------------------------------------------------------------

    def transmit(self, send: Callable[[Sequence[Frame]], None], may_send: Callable[[int], bool]) -> bool:
        """Take what the guest's queues hold and `send` it, in batches; return whether there is more to do at once.

        `may_send` is asked for each packet with its size; when it says no, the packet stays where it is.
        """
        again = False
        self._is_ahead = False
        started = time.monotonic()
        before = self._sent
        for queue in self._queues:
            again |= self._transmit(queue, send, may_send)
        self._pace.sent(self._sent - before, time.monotonic() - started)
        return again

    def _transmit(self, queue: Queue, send: Callable[[Sequence[Frame]], None], may_send: Callable[[int], bool]) -> bool:
        ahead = self._pace.ahead
        for _ in range(_ROUNDS):
            packets, full = _take_batch(queue.tx, may_send, ahead)
            if packets:
                self._is_ahead |= ahead > 0
                self._sent += len(packets)
                self._send_batch(queue, packets, send)
                if queue.tx.ring.push():
                    queue.notify_tx()
            if not full:
                return False
        return True

    @property
    def look_in(self) -> float | None:
        """Return after how many seconds to `transmit` without having been told, None if we will be told of everything."""
        return self._pace.wait_s if self._is_ahead else None

    def _send_batch(self, queue: Queue, packets: list[TxPacket], send: Callable[[Sequence[Frame]], None]) -> None:
        """Send packets and put the responses. Who sees a frame knows that the wishes before it are noted, even should we die then."""
        changed = [self._groups.change(packet.multicast) if packet.multicast else NETIF_RSP_OKAY for packet in packets]
        with queue.tx.opened([packet for packet in packets if not packet.multicast]) as frames:
            ready = [frame for frame in frames if frame is not None]
            if ready:
                send(ready)
            sent = iter([frame is not None for frame in frames])
        queue.tx.answer(
            (packet, status if packet.multicast else NETIF_RSP_OKAY if next(sent) else NETIF_RSP_ERROR)
            for packet, status in zip(packets, changed, strict=True)
        )

    # -- to the guest -------------------------------------------------------------------------------------------------

    def deliver(self, frames: Sequence[Frame]) -> int:
        """Give the guest frames; return how many, from the first on, are dealt with. The others need more room."""
        touched: set[int] = set()
        taken = 0
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
        if touched:
            self._pace.received()
        for index in touched:
            queue = self._queues[index]
            if queue.rx.flush():
                queue.notify_rx()
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
        return address != _BROADCAST and address not in self._groups.addresses


def _take_batch(tx: TxRing, may_send: Callable[[int], bool], ahead: int) -> tuple[list[TxPacket], bool]:
    """Take packets out of a ring; return them and whether there is, or may be, more. Raises FrontendError.

    With any taken, the guest sends an event `ahead` slots after the next, else with the next one.
    """
    packets: list[TxPacket] = []
    while len(packets) < BATCH:
        if not tx.waiting():
            if tx.ring.more(ahead if packets else 0):
                continue
            return packets, False
        packet = tx.next_packet()
        if not may_send(packet.size):
            return packets, False
        tx.take(packet)
        packets.append(packet)
    return packets, True
