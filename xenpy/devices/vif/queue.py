"""One pair of rings of a guest's: frames out of its granted pages, and into them.

Everything is called in the loop's thread under the host's lock; FrontendError (GrantError is one) ends the connection.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from xenpy.abi.netif import (
    NETIF_RSP_NULL,
    NETIF_RX_REQUEST,
    NETIF_RX_SLOT_SIZE,
    NETIF_TX_RESPONSE,
    NETIF_TX_SLOT_SIZE,
    NETTXF_csum_blank,
    NETTXF_data_validated,
)
from xenpy.devices.ring import BackRing
from xenpy.devices.vif.frame import ETH_HLEN, HEADER_ROOM, Frame
from xenpy.devices.vif.slots import parse_packet, rx_responses, rx_slots
from xenpy.memory import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.devices.vif.frame import Buffer
    from xenpy.devices.vif.slots import TxPacket
    from xenpy.pv.gnttab import GrantMapping


class TxRing:
    """Takes packets out of a transmit ring."""

    def __init__(self, page: memoryview, map_page: Callable[[int, bool], GrantMapping]) -> None:
        self.ring = BackRing([page], NETIF_TX_SLOT_SIZE)
        self._map_page = map_page
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

    def open_frame(self, packet: TxPacket, pages: list[GrantMapping]) -> Frame | None:
        """Return a packet's frame, good until the pages added to `pages` are closed; None if it is too short to be one."""
        if packet.size < ETH_HLEN:
            return None
        parts: list[Buffer] = []
        head = b""
        for piece in packet.pieces:
            if not piece.size:
                continue
            page = self._map_page(piece.gref, True)
            pages.append(page)
            view = page.view[piece.offset : piece.offset + piece.size]
            missing = HEADER_ROOM - len(head)
            if missing:
                head += bytes(view[:missing])
                view = view[missing:]
            if view:
                parts.append(view)
        blank = bool(packet.flags & NETTXF_csum_blank) or packet.gso is not None
        validated = blank or bool(packet.flags & NETTXF_data_validated)
        return Frame([head, *parts], packet.size, blank, validated, packet.gso)

    def answer(self, packet: TxPacket, status: int) -> None:
        """Put the responses to a packet's slots."""
        for ident in packet.ids:
            if ident is None:
                self.ring.put(NETIF_TX_RESPONSE.pack(0, NETIF_RSP_NULL))
            else:
                self.ring.put(NETIF_TX_RESPONSE.pack(ident, status))


class RxRing:
    """Puts frames into the pages that a receive ring offers."""

    def __init__(self, page: memoryview, map_page: Callable[[int, bool], GrantMapping]) -> None:
        self.ring = BackRing([page], NETIF_RX_SLOT_SIZE)
        self._map_page = map_page
        self._free: deque[tuple[int, int]] = deque()

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
        """Copy a frame into as many pages as `rx_slots` says, of which there must be room. Raises GrantError."""
        requests = [self._free.popleft() for _ in range(rx_slots(frame))]
        skipped = len(requests) - -(-frame.size // PAGE_SIZE)  # those of extras, behind the first
        parts = iter(frame.parts)
        part = memoryview(next(parts))
        left = frame.size
        for _, gref in (requests[0], *requests[1 + skipped :]) if skipped else requests:
            room = min(left, PAGE_SIZE)
            left -= room
            at = 0
            with self._map_page(gref, False) as page:
                view = page.view
                while at < room:
                    if not part:
                        part = memoryview(next(parts))
                    step = min(len(part), room - at)
                    view[at : at + step] = part[:step]
                    part = part[step:]
                    at += step
        for response in rx_responses(frame, [ident for ident, _ in requests]):
            self.ring.put(response)
