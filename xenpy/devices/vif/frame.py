"""Ethernet frames on their way: pieces of memory, and what remains to be done to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

Buffer = bytes | bytearray | memoryview

ETH_HLEN: Final = 14
"""Ref: IEEE 802.3: two addresses and a type"""
MAX_FRAME: Final = 0xFFFF
HEADER_ROOM: Final = 192
"""So much of a frame's start is copied before anything in it is believed: Ethernet with two tags, IPv6 with some
extensions, TCP with all its options."""


class Gso(NamedTuple):
    """A TCP segment larger than the wire's: `size` is the most payload in bytes that each of its parts may have."""

    size: int
    v6: bool


class FlowHash(NamedTuple):
    """A hash over the addresses of a frame. Ref: xen/include/public/io/netif.h, XEN_NETIF_EXTRA_TYPE_HASH"""

    type: int
    algorithm: int
    value: int


@dataclass(slots=True)
class Frame:
    """A frame in pieces, the first of which has all the headers and is no guest's to change.

    The others may be live views of guest memory: they are good until the call that hands the frame over returns, and
    `keep` makes a frame that outlives it. `csum_blank`: the transport checksum is for the receiver to fill in;
    `validated`: it need not be looked at.
    """

    parts: Sequence[Buffer]
    size: int
    csum_blank: bool = False
    validated: bool = False
    gso: Gso | None = None
    hash: FlowHash | None = None

    @property
    def head(self) -> Buffer:
        """Return the first piece."""
        return self.parts[0]

    def keep(self) -> Frame:
        """Return a frame whose bytes are our own."""
        return Frame([b"".join(self.parts)], self.size, self.csum_blank, self.validated, self.gso, self.hash)


@dataclass(frozen=True, slots=True)
class Offloads:
    """What a receiver of frames does itself.

    `max_size` is the largest frame in bytes that it takes. `csum` and `csum6` tell of checksums over IPv4 and IPv6,
    `gso4` and `gso6` of segmentation.
    """

    csum: bool = False
    csum6: bool = False
    gso4: bool = False
    gso6: bool = False
    max_size: int = MAX_FRAME


ALL_OFFLOADS: Final = Offloads(csum=True, csum6=True, gso4=True, gso6=True)
