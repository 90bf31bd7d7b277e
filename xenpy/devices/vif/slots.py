"""Packets in the slots of the rings: what a guest's requests say, and what our responses do.

Ref: xen/include/public/io/netif.h, "Guest transmit", "Guest receive", "Extra Info"
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from xenpy.abi.netif import (
    NETIF_EXTRA,
    NETIF_EXTRA_GSO,
    NETIF_EXTRA_HASH,
    NETIF_RX_RESPONSE,
    NETIF_TX_REQUEST,
    XEN_NETIF_EXTRA_FLAG_MORE,
    XEN_NETIF_EXTRA_TYPE_GSO,
    XEN_NETIF_EXTRA_TYPE_HASH,
    XEN_NETIF_EXTRA_TYPE_MCAST_ADD,
    XEN_NETIF_EXTRA_TYPE_MCAST_DEL,
    XEN_NETIF_GSO_TYPE_TCPV4,
    XEN_NETIF_GSO_TYPE_TCPV6,
    NETRXF_csum_blank,
    NETRXF_data_validated,
    NETRXF_extra_info,
    NETRXF_more_data,
    NETTXF_extra_info,
    NETTXF_more_data,
)
from xenpy.devices.vif.frame import FlowHash, Gso
from xenpy.errors import FrontendError
from xenpy.memory import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xenpy.devices.vif.frame import Frame

MAX_SLOTS: Final = 20
"""Data slots of one packet; netif.h promises 18, and every backend in use allows these."""
_MAX_EXTRAS: Final = 4
"""There are no more types of them that a packet may have."""


class Piece(NamedTuple):
    """Bytes of a packet in a granted page."""

    gref: int
    offset: int
    size: int


class Multicast(NamedTuple):
    """A wish to hear, or no more, frames to a group address."""

    add: bool
    address: bytes


@dataclass(slots=True)
class TxPacket:
    """A packet as the guest's requests describe it; `flags` are the first one's NETTXF_*.

    `ids` has an entry for each slot, None for one that was an extra.
    """

    flags: int
    size: int
    pieces: list[Piece]
    ids: list[int | None]
    gso: Gso | None = None
    hash: FlowHash | None = None
    multicast: list[Multicast] = field(default_factory=list)


def parse_packet(slots: Sequence[bytes], start: int) -> TxPacket:
    """Return the packet whose first slot is `slots[start]`.

    Raises FrontendError: a packet must have come whole, in not too many slots, each within its page.
    """
    gref, offset, flags, ident, size = NETIF_TX_REQUEST.unpack(slots[start])
    packet = TxPacket(flags, size, [], [ident])
    position = start + 1
    if flags & NETTXF_extra_info:
        position = _parse_extras(packet, slots, position)
    rest = 0
    more = flags
    others: list[Piece] = []
    while more & NETTXF_more_data:
        if len(others) == MAX_SLOTS - 1:
            raise FrontendError(f"a packet of more than {MAX_SLOTS} slots")
        if position == len(slots):
            raise FrontendError("a packet's last slot is missing")
        piece_gref, piece_offset, more, ident, piece_size = NETIF_TX_REQUEST.unpack(slots[position])
        position += 1
        packet.ids.append(ident)
        others.append(_piece(piece_gref, piece_offset, piece_size))
        rest += piece_size
    if rest > size:
        raise FrontendError(f"a packet of {size} bytes has {rest} in its further slots")
    packet.pieces = [_piece(gref, offset, size - rest), *others]
    return packet


def _piece(gref: int, offset: int, size: int) -> Piece:
    if offset + size > PAGE_SIZE:
        raise FrontendError(f"a packet's {size} bytes at offset {offset} cross a page's end")
    return Piece(gref, offset, size)


def _parse_extras(packet: TxPacket, slots: Sequence[bytes], position: int) -> int:
    """Take the extras that begin at `position` into the packet; return where they end."""
    for _ in range(_MAX_EXTRAS):
        if position == len(slots):
            raise FrontendError("a packet's extra is missing")
        kind, flags, body = NETIF_EXTRA.unpack_from(slots[position])
        position += 1
        packet.ids.append(None)
        if kind == XEN_NETIF_EXTRA_TYPE_GSO:
            packet.gso = _parse_gso(body)
        elif kind == XEN_NETIF_EXTRA_TYPE_HASH:
            packet.hash = FlowHash(*NETIF_EXTRA_HASH.unpack(body))
        elif kind in (XEN_NETIF_EXTRA_TYPE_MCAST_ADD, XEN_NETIF_EXTRA_TYPE_MCAST_DEL):
            packet.multicast.append(Multicast(kind == XEN_NETIF_EXTRA_TYPE_MCAST_ADD, body))
        else:
            raise FrontendError(f"a packet's extra of type {kind}")
        if not flags & XEN_NETIF_EXTRA_FLAG_MORE:
            return position
    raise FrontendError(f"a packet of more than {_MAX_EXTRAS} extras")


def _parse_gso(body: bytes) -> Gso:
    size, kind, _features = NETIF_EXTRA_GSO.unpack(body)
    if kind not in (XEN_NETIF_GSO_TYPE_TCPV4, XEN_NETIF_GSO_TYPE_TCPV6):
        raise FrontendError(f"segmentation offload of type {kind}")
    if not size:
        raise FrontendError("segmentation offload into parts of no size")
    return Gso(size, kind == XEN_NETIF_GSO_TYPE_TCPV6)


def rx_slots(frame: Frame) -> int:
    """Return how many slots a frame takes on its way to a guest."""
    return -(-frame.size // PAGE_SIZE) + (frame.gso is not None) + (frame.hash is not None)


def rx_responses(frame: Frame, ids: Sequence[int]) -> list[bytes]:
    """Return the responses that show a frame in the pages of as many requests, which have `ids`.

    Pages are filled from their start; the requests of extras, after the first, are used up and their pages are not.
    """
    extras = _rx_extras(frame)
    first = min(frame.size, PAGE_SIZE)
    rest = frame.size - first
    flags = (NETRXF_more_data if rest else 0) | (NETRXF_extra_info if extras else 0)
    if frame.csum_blank:
        flags |= NETRXF_csum_blank | NETRXF_data_validated
    elif frame.validated:
        flags |= NETRXF_data_validated
    responses = [NETIF_RX_RESPONSE.pack(ids[0], 0, flags, first), *extras]
    while rest:
        size = min(rest, PAGE_SIZE)
        rest -= size
        responses.append(NETIF_RX_RESPONSE.pack(ids[len(responses)], 0, NETRXF_more_data if rest else 0, size))
    return responses


def _rx_extras(frame: Frame) -> list[bytes]:
    bodies: list[tuple[int, bytes]] = []
    if frame.gso is not None:
        kind = XEN_NETIF_GSO_TYPE_TCPV6 if frame.gso.v6 else XEN_NETIF_GSO_TYPE_TCPV4
        bodies.append((XEN_NETIF_EXTRA_TYPE_GSO, NETIF_EXTRA_GSO.pack(frame.gso.size, kind, 0)))
    if frame.hash is not None:
        bodies.append((XEN_NETIF_EXTRA_TYPE_HASH, NETIF_EXTRA_HASH.pack(*frame.hash)))
    return [
        NETIF_EXTRA.pack(kind, XEN_NETIF_EXTRA_FLAG_MORE if number + 1 < len(bodies) else 0, body)
        for number, (kind, body) in enumerate(bodies)
    ]
