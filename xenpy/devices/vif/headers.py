"""Where things are in the headers of a frame.

Ref: IEEE 802.1Q, RFC 791, RFC 8200, RFC 9293, RFC 768
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from xenpy.devices.vif.checksum import ones_sum
from xenpy.devices.vif.frame import ETH_HLEN

if TYPE_CHECKING:
    from xenpy.devices.vif.frame import Buffer

U16: Final = Struct(">H")
U32: Final = Struct(">I")

_TYPE_OFFSET: Final = 12
_TAGS: Final = frozenset({0x8100, 0x88A8})
_TAG_SIZE: Final = 4
_MAX_TAGS: Final = 2
_ETH_IPV4: Final = 0x0800
_ETH_IPV6: Final = 0x86DD

IPV4_LENGTH, IPV4_ID, IPV4_FRAGMENT, IPV4_PROTOCOL, IPV4_CHECKSUM, IPV4_SOURCE = 2, 4, 6, 9, 10, 12
IPV4_MIN: Final = 20
_IPV4_FRAGMENTED: Final = 0x3FFF  # more fragments, or an offset
IPV6_LENGTH, IPV6_NEXT, IPV6_SOURCE = 4, 6, 8
IPV6_HLEN: Final = 40
_EXTENSIONS: Final = frozenset({0, 43, 60, 135, 139, 140})  # all of which say their length in the same way
_MAX_EXTENSIONS: Final = 8
_WORD: Final = 8

TCP: Final = 6
UDP: Final = 17
TCP_SEQ, TCP_OFFSET, TCP_FLAGS, TCP_CHECKSUM = 4, 12, 13, 16
TCP_MIN: Final = 20
UDP_LENGTH, UDP_CHECKSUM = 4, 6
UDP_HLEN: Final = 8


class Headers(NamedTuple):
    """Offsets in bytes from the start of a frame: of the IP header, the transport header and the payload."""

    v6: bool
    protocol: int
    network: int
    transport: int
    payload: int

    @property
    def checksum(self) -> int:
        """Return where the transport checksum is."""
        return self.transport + (TCP_CHECKSUM if self.protocol == TCP else UDP_CHECKSUM)

    def addresses(self, head: Buffer) -> bytes:
        """Return source and destination IP address."""
        if self.v6:
            return bytes(head[self.network + IPV6_SOURCE : self.network + IPV6_HLEN])
        return bytes(head[self.network + IPV4_SOURCE : self.network + IPV4_MIN])

    def ports(self, head: Buffer) -> bytes:
        """Return source and destination port."""
        return bytes(head[self.transport : self.transport + 4])

    def pseudo_sum(self, head: Buffer, size: int) -> int:
        """Return the sum of the pseudo-header for a transport header and payload of `size` bytes."""
        return ones_sum((self.addresses(head),), self.protocol + (size >> 16) + (size & 0xFFFF))


def network_offset(head: Buffer) -> tuple[int, int]:
    """Return the type of what a frame carries and where that begins, behind up to two tags."""
    offset = ETH_HLEN
    kind = U16.unpack_from(head, _TYPE_OFFSET)[0] if len(head) >= ETH_HLEN else 0
    for _ in range(_MAX_TAGS):
        if kind not in _TAGS or len(head) < offset + _TAG_SIZE:
            break
        kind = U16.unpack_from(head, offset + 2)[0]
        offset += _TAG_SIZE
    return kind, offset


def ip_addresses(head: Buffer) -> tuple[bool, bytes] | None:
    """Return whether a frame is IPv6, and its source and destination address; None if it is no IP packet."""
    kind, network = network_offset(head)
    if kind == _ETH_IPV4 and len(head) >= network + IPV4_MIN:
        return False, bytes(head[network + IPV4_SOURCE : network + IPV4_MIN])
    if kind == _ETH_IPV6 and len(head) >= network + IPV6_HLEN:
        return True, bytes(head[network + IPV6_SOURCE : network + IPV6_HLEN])
    return None


def parse(head: Buffer) -> Headers | None:
    """Find the headers of a TCP segment or UDP datagram in the start of a frame; None if there is no whole one.

    A fragment of a datagram is none: its checksum is not its own.
    """
    kind, network = network_offset(head)
    if kind == _ETH_IPV4:
        found = _ipv4(head, network)
    elif kind == _ETH_IPV6:
        found = _ipv6(head, network)
    else:
        return None
    if found is None:
        return None
    protocol, transport = found
    if protocol == TCP:
        if len(head) < transport + TCP_MIN:
            return None
        size = head[transport + TCP_OFFSET] >> 4 << 2
        if size < TCP_MIN:
            return None
    elif protocol == UDP:
        size = UDP_HLEN
    else:
        return None
    if len(head) < transport + size:
        return None
    return Headers(kind == _ETH_IPV6, protocol, network, transport, transport + size)


def _ipv4(head: Buffer, offset: int) -> tuple[int, int] | None:
    """Return protocol and end of an IPv4 header."""
    if len(head) < offset + IPV4_MIN or head[offset] >> 4 != 4:
        return None
    size = (head[offset] & 0xF) << 2
    if size < IPV4_MIN or U16.unpack_from(head, offset + IPV4_FRAGMENT)[0] & _IPV4_FRAGMENTED:
        return None
    return head[offset + IPV4_PROTOCOL], offset + size


def _ipv6(head: Buffer, offset: int) -> tuple[int, int] | None:
    """Return protocol and end of an IPv6 header and its extensions."""
    if len(head) < offset + IPV6_HLEN or head[offset] >> 4 != 6:
        return None
    following, offset = head[offset + IPV6_NEXT], offset + IPV6_HLEN
    for _ in range(_MAX_EXTENSIONS):
        if following not in _EXTENSIONS:
            return following, offset
        if len(head) < offset + _WORD:
            return None
        following, offset = head[offset], offset + (head[offset + 1] + 1) * _WORD
    return None
