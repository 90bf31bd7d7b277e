"""A netfront that keeps an interface busy both ways and knows what every frame must be, whatever happens to whoever moves them."""

from __future__ import annotations

import random
import time
from hashlib import sha256
from typing import TYPE_CHECKING

from vif_rig import OURS, THEIRS
from xenbus_rig import PATIENCE

from xenpy.abi.netif import (
    NETIF_RX_REQUEST,
    NETIF_RX_RESPONSE,
    NETIF_RX_SLOT_SIZE,
    NETIF_TX_REQUEST,
    NETIF_TX_RESPONSE,
    NETIF_TX_SLOT_SIZE,
    NETRXF_more_data,
    NETTXF_more_data,
)
from xenpy.memory import PAGE_SIZE

if TYPE_CHECKING:
    from isolation_hammer import Killer
    from vif_isolation_rig import StreamWire, TapWire
    from vif_rig import FrontQueue, NetFront

SLOTS = 120
"""Pages of a queue in either direction; fewer than a ring has."""
KIND = b"\x88\xb5"
_HEAD = 14
_NUMBER = 8
_MIN, _MAX = 60, 9000


def frame(number: int, size: int, *, out: bool) -> bytes:
    """Return the frame of a number: its content follows from that and from its size."""
    start = (THEIRS + OURS if out else OURS + THEIRS) + KIND + number.to_bytes(_NUMBER, "big")
    pattern = sha256(start + size.to_bytes(2, "big")).digest()
    return start + (pattern * (size // len(pattern) + 1))[: size - len(start)]


def number_of(data: bytes, *, out: bool) -> int:
    """Return the number of a frame, which must be as it was sent."""
    number = int.from_bytes(data[_HEAD : _HEAD + _NUMBER], "big")
    assert data == frame(number, len(data), out=out), f"frame {number} of {len(data)} bytes is not what was sent"
    return number


class Traffic:
    """What one queue has under way."""

    def __init__(self, queue: FrontQueue, seed: int) -> None:
        self._queue = queue
        self._random = random.Random(seed)
        self._tx = [self._page(readonly=True) for _ in range(SLOTS)]
        self._rx = [self._page() for _ in range(SLOTS)]
        self._tx_free = list(range(SLOTS))
        self._tx_waiting: list[int] = []
        self._rx_waiting: list[int] = []
        self._rx_parts = b""
        self.answered = 0
        for slot in range(SLOTS):
            self._post(slot)

    def _page(self, *, readonly: bool = False) -> tuple[memoryview, int]:
        gfn, view = self._queue.services.page()
        return view, self._queue.services.grant(gfn, readonly=readonly)

    def _post(self, slot: int) -> None:
        view, gref = self._rx[slot]
        view[:] = bytes(PAGE_SIZE)
        self._queue.rx.put(NETIF_RX_REQUEST.pack(slot, gref))
        self._rx_waiting.append(slot)

    def send(self, number: int) -> bool:
        """Put a packet into the ring; tell whether there was room."""
        size = self._random.randint(_MIN, _MAX)
        count = -(-size // PAGE_SIZE)
        if len(self._tx_free) < count:
            return False
        data = frame(number, size, out=True)
        for index in range(count):
            slot = self._tx_free.pop(0)
            piece = data[index * PAGE_SIZE : (index + 1) * PAGE_SIZE]
            self._tx[slot][0][: len(piece)] = piece
            flags = NETTXF_more_data if index + 1 < count else 0
            total = size if not index else len(piece)
            self._queue.tx.put(NETIF_TX_REQUEST.pack(self._tx[slot][1], 0, flags, slot, total))
            self._tx_waiting.append(slot)
        return True

    def kick(self) -> None:
        """Show the backend what was put."""
        queue = self._queue
        if queue.tx.push():
            queue.services.send(queue.tx_port)
        if queue.rx.push():
            queue.services.send(queue.rx_port)

    def collect(self) -> None:
        """Take in the answers to packets: one for each slot, in order, and the pages are ours again."""
        for response in self._queue.tx.take(NETIF_TX_SLOT_SIZE):
            slot, status = NETIF_TX_RESPONSE.unpack(response[: NETIF_TX_RESPONSE.size])
            expected = self._tx_waiting.pop(0)
            assert (slot, status) == (expected, 0)
            assert not self._queue.services.in_use(self._tx[slot][1])
            self._tx_free.append(slot)
            self.answered += 1

    def received(self) -> list[int]:
        """Return the numbers of the frames that have come, each whole, and offer the pages again."""
        numbers = []
        for response in self._queue.rx.take(NETIF_RX_SLOT_SIZE):
            slot, offset, flags, size = NETIF_RX_RESPONSE.unpack(response)
            expected = self._rx_waiting.pop(0)
            assert slot == expected, "a slot is answered once, in its turn"
            view, gref = self._rx[slot]
            assert not self._queue.services.in_use(gref)
            self._rx_parts += bytes(view[offset : offset + size])
            self._post(slot)
            if not flags & NETRXF_more_data:
                numbers.append(number_of(self._rx_parts, out=False))
                self._rx_parts = b""
        return numbers


class NetHammer:
    """Frames of all sizes, both ways, on all queues."""

    def __init__(self, front: NetFront, wire: StreamWire | TapWire, seed: int) -> None:
        self._front = front
        self._wire = wire
        self._random = random.Random(seed)
        self._traffic = [Traffic(queue, seed + index) for index, queue in enumerate(front.queues)]
        self._last_in = dict.fromkeys(range(len(front.queues)), -1)
        self.sent = self.offered = 0
        self.came_out: set[int] = set()
        self.came_in: set[int] = set()
        self.doubles = 0

    def turn(self) -> None:
        """Move what can be moved, and check what has come."""
        for traffic in self._traffic:
            traffic.collect()
            while traffic.send(self.sent):
                self.sent += 1
            for number in traffic.received():
                assert number not in self.came_in, f"frame {number} was delivered twice"
                self.came_in.add(number)
            traffic.kick()
        for _ in range(8):
            if not self._wire.send(frame(self.offered, self._random.randint(_MIN, _MAX), out=False)):
                break
            self.offered += 1
        for data in self._wire.receive():
            number = number_of(data, out=True)
            self.doubles += number in self.came_out
            self.came_out.add(number)
        self._front.services.pump()

    @property
    def done(self) -> tuple[int, int]:
        return len(self.came_in), sum(traffic.answered for traffic in self._traffic)

    def run(self, killer: Killer) -> None:
        """Keep the interface busy while there is killing to be done. Fails if either direction stands still."""
        last, since = self.done, [time.monotonic()] * 2
        while killer.busy:
            self.turn()
            now, done = time.monotonic(), self.done
            since = [now if new != old else at for new, old, at in zip(done, last, since, strict=True)]
            last = done
            assert now - min(since) < PATIENCE, f"the interface stands still: {done}"
            time.sleep(0.0005)

    def finish(self) -> None:
        """Go on until frames have passed both ways once more."""
        before = self.done

        def passed() -> bool:
            self.turn()
            return all(new > old for new, old in zip(self.done, before, strict=True))

        self._front.services.until(passed, "frames after the last death")
