"""One pair of rings of a guest's: frames out of its granted pages, and into them.

Everything is called in one thread; FrontendError ends the connection. Pages are mapped for a batch at a time, for whoever is in a process
of its own pays for each exchange with the VMM, not for each page.
"""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

from xenpy.abi.netif import (
    NETIF_RSP_NULL,
    NETIF_RX_REQUEST,
    NETIF_TX_RESPONSE,
    NETTXF_csum_blank,
    NETTXF_data_validated,
)
from xenpy.devices.vif.frame import ETH_HLEN, HEADER_ROOM, Frame
from xenpy.devices.vif.slots import parse_packet, rx_responses, rx_slots
from xenpy.memory import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from xenpy.devices.grants import Grants, Page
    from xenpy.devices.ring import BackRing
    from xenpy.devices.vif.frame import Buffer
    from xenpy.devices.vif.slots import TxPacket


class TxRing:
    """Takes packets out of a transmit ring."""

    def __init__(self, ring: BackRing, grants: Grants) -> None:
        self.ring = ring
        self._grants = grants
        self._slots: list[bytes] = []
        self._position = 0

    def waiting(self) -> bool:
        """Tell whether there are packets that were not taken yet. Raises FrontendError."""
        if self._position == len(self._slots):
            self._slots, self._position = self.ring.take(), 0
        return self._position < len(self._slots)

    def next_packet(self) -> TxPacket:
        """Return the packet that is next, without taking it. Raises FrontendError."""
        return parse_packet(self._slots, self._position)

    def take(self, packet: TxPacket) -> None:
        """Count the next packet as taken."""
        self._position += len(packet.ids)

    @contextmanager
    def opened(self, packets: Sequence[TxPacket]) -> Iterator[list[Frame | None]]:
        """Provide the packets' frames, None for one that is too short to be one. Raises FrontendError."""
        grefs = [piece.gref for packet in packets if packet.size >= ETH_HLEN for piece in packet.pieces if piece.size]
        pages = self._grants.map(grefs, readonly=True) if grefs else ()
        try:
            mapped = iter(pages)
            yield [self._frame(packet, mapped) for packet in packets]
        finally:
            if pages:
                self._grants.unmap(pages)

    def _frame(self, packet: TxPacket, pages: Iterator[Page]) -> Frame | None:
        if packet.size < ETH_HLEN:
            return None
        parts: list[Buffer] = []
        head = b""
        for piece in packet.pieces:
            if not piece.size:
                continue
            view = next(pages).view[piece.offset : piece.offset + piece.size]
            missing = HEADER_ROOM - len(head)
            if missing:
                head += bytes(view[:missing])
                view = view[missing:]
            if view:
                parts.append(view)
        blank = bool(packet.flags & NETTXF_csum_blank) or packet.gso is not None
        validated = blank or bool(packet.flags & NETTXF_data_validated)
        return Frame([head, *parts], packet.size, blank, validated, packet.gso)

    def answer(self, packets: Iterable[tuple[TxPacket, int]]) -> None:
        """Put the responses to packets' slots, each packet's with its status."""
        pack = NETIF_TX_RESPONSE.pack
        self.ring.put_all(
            [
                pack(0, NETIF_RSP_NULL) if ident is None else pack(ident, status)
                for packet, status in packets
                for ident in packet.ids
            ]
        )


class RxRing:
    """Puts frames into the pages that a receive ring offers."""

    def __init__(self, ring: BackRing, grants: Grants) -> None:
        self.ring = ring
        self._grants = grants
        self._free: deque[tuple[int, int]] = deque()
        self._put: list[tuple[Frame, list[tuple[int, int]]]] = []

    def has_room(self, slots: int) -> bool:
        """Tell whether there are as many requests; if not, the guest will send an event with the next. Raises FrontendError."""
        while len(self._free) < slots:
            taken = self.ring.take()
            if taken:
                self._free.extend(NETIF_RX_REQUEST.unpack(request) for request in taken)
            elif not self.ring.more():
                return False
        return True

    def put(self, frame: Frame) -> None:
        """Have a frame copied by the next `flush` into as many pages as `rx_slots` says, of which there must be room."""
        self._put.append((frame, [self._free.popleft() for _ in range(rx_slots(frame))]))

    def flush(self) -> bool:
        """Copy the frames and show them to the guest; tell whether it wants an event. Raises FrontendError."""
        places = [_places(frame, requests) for frame, requests in self._put]
        grefs = [gref for place in places for gref in place]
        pages = self._grants.map(grefs, readonly=False) if grefs else ()
        try:
            mapped = iter(pages)
            for (frame, _), place in zip(self._put, places, strict=True):
                _copy(frame, [next(mapped).view for _ in place])
        finally:
            if pages:
                self._grants.unmap(pages)
        responses: list[bytes] = []
        for frame, requests in self._put:
            responses += rx_responses(frame, [ident for ident, _ in requests])
        self.ring.put_all(responses)
        self._put.clear()
        return self.ring.push()


def _places(frame: Frame, requests: Sequence[tuple[int, int]]) -> list[int]:
    """Return the grants of the pages that a frame is copied into: those of extras, behind the first, are left as they are."""
    skipped = len(requests) - -(-frame.size // PAGE_SIZE)
    return [gref for _, gref in (requests[0], *requests[1 + skipped :])]


def _copy(frame: Frame, views: Sequence[memoryview]) -> None:
    """Fill pages with a frame."""
    parts = iter(frame.parts)
    part = memoryview(next(parts))
    left = frame.size
    for view in views:
        room = min(left, PAGE_SIZE)
        left -= room
        at = 0
        while at < room:
            if not part:
                part = memoryview(next(parts))
            step = min(len(part), room - at)
            view[at : at + step] = part[:step]
            part = part[step:]
            at += step
