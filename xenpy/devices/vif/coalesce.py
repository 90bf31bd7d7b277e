"""Consecutive TCP segments of a flow put back together for a receiver of large ones.

A guest that keeps to small frames gets a stream as hundreds of them, each of which costs it and us a page, a grant and a
look at its headers. Joined, their payloads are copied from where they are into the guest's pages, one after the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.devices.vif.checksum import checksum
from xenpy.devices.vif.frame import ETH_HLEN, MAX_FRAME, Frame, Gso
from xenpy.devices.vif.headers import (
    IPV4_CHECKSUM,
    IPV4_FRAGMENT,
    IPV4_LENGTH,
    IPV4_MIN,
    IPV4_PROTOCOL,
    IPV4_SOURCE,
    IPV6_HLEN,
    IPV6_LENGTH,
    IPV6_NEXT,
    TCP,
    TCP_CHECKSUM,
    TCP_FLAGS,
    TCP_MIN,
    TCP_OFFSET,
    TCP_SEQ,
    U16,
    U32,
    Headers,
)
from xenpy.devices.vif.offload import MIN_MSS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xenpy.devices.vif.frame import Buffer, Offloads

_PSH, _ACK = 0x08, 0x10
_IPV4_START: Final = b"\x08\x00\x45"
"""IPv4 without options, right behind the addresses."""
_IPV6_START: Final = b"\x86\xdd"
_MORE_FRAGMENTS_OR_OFFSET: Final = 0x3FFF
_TCP_ACK: Final = 8
_TCP_WINDOW: Final = 14
_TCP_URGENT: Final = 18
_SEQ_MASK: Final = 0xFFFF_FFFF


class _Segment:
    """A frame that may be joined with others: `key` is all of its headers that must be the same in all of them."""

    __slots__ = ("flags", "frame", "headers", "key", "seq", "size")

    def __init__(self, frame: Frame, headers: Headers) -> None:
        head, network, transport = frame.head, headers.network, headers.transport
        if headers.v6:
            fixed = head[: network + IPV6_LENGTH], head[network + IPV6_NEXT : transport + TCP_SEQ]
        else:
            fixed = (
                head[: network + IPV4_LENGTH],
                bytes(head[network + IPV4_FRAGMENT : network + IPV4_CHECKSUM])
                + bytes(head[network + IPV4_SOURCE : transport + TCP_SEQ]),
            )
        self.frame = frame
        self.headers = headers
        self.flags = head[transport + TCP_FLAGS]
        self.seq: int = U32.unpack_from(head, transport + TCP_SEQ)[0]
        self.size = frame.size - headers.payload
        self.key = (
            *map(bytes, fixed),
            bytes(head[transport + _TCP_ACK : transport + TCP_FLAGS]),
            bytes(head[transport + _TCP_WINDOW : transport + TCP_CHECKSUM]),
            bytes(head[transport + _TCP_URGENT : headers.payload]),
        )


def coalesce(frames: Sequence[Frame], receiver: Offloads) -> list[tuple[Frame, int]]:
    """Return the frames, runs of segments joined, each with the number of frames that it stands for.

    Only frames whose checksums are known to be right are joined.
    """
    joined: list[tuple[Frame, int]] = []
    run: list[_Segment] = []
    size = 0
    for frame in frames:
        segment = _segment(frame, receiver)
        if run and (segment is None or not _continues(run, segment, size)):
            joined.append((_join(run), len(run)))
            run = []
        if segment is None:
            joined.append((frame, 1))
        else:
            size = size + segment.size if run else frame.size
            run.append(segment)
    if run:
        joined.append((_join(run), len(run)))
    return joined


def _segment(frame: Frame, receiver: Offloads) -> _Segment | None:
    """Return a frame as a segment that may be joined, or None."""
    if not frame.validated or frame.csum_blank or frame.gso is not None:
        return None
    head = frame.head
    if receiver.gso4 and head[ETH_HLEN - 2 : ETH_HLEN + 1] == _IPV4_START:
        v6, transport = False, ETH_HLEN + IPV4_MIN
        protocol = head[ETH_HLEN + IPV4_PROTOCOL] if len(head) >= transport + TCP_MIN else 0
    elif receiver.gso6 and head[ETH_HLEN - 2 : ETH_HLEN] == _IPV6_START:
        v6, transport = True, ETH_HLEN + IPV6_HLEN
        protocol = head[ETH_HLEN + IPV6_NEXT] if len(head) >= transport + TCP_MIN else 0
    else:
        return None
    if protocol != TCP or head[transport + TCP_FLAGS] & ~_PSH != _ACK:
        return None
    payload = transport + (head[transport + TCP_OFFSET] >> 4 << 2)
    if payload < transport + TCP_MIN or payload > len(head) or frame.size - payload < MIN_MSS:
        return None
    if v6:
        whole = int(U16.unpack_from(head, ETH_HLEN + IPV6_LENGTH)[0]) + ETH_HLEN + IPV6_HLEN == frame.size
    else:
        whole = (
            int(U16.unpack_from(head, ETH_HLEN + IPV4_LENGTH)[0]) + ETH_HLEN == frame.size
            and not U16.unpack_from(head, ETH_HLEN + IPV4_FRAGMENT)[0] & _MORE_FRAGMENTS_OR_OFFSET
        )
    return _Segment(frame, Headers(v6, TCP, ETH_HLEN, transport, payload)) if whole else None


def _continues(run: list[_Segment], segment: _Segment, size: int) -> bool:
    """Tell whether a segment follows those of the run, of `size` bytes so far, none of which may end it."""
    first, last = run[0], run[-1]
    return (
        segment.seq == (last.seq + last.size) & _SEQ_MASK
        and last.size == first.size >= segment.size
        and not last.flags & _PSH
        and size + segment.size <= MAX_FRAME
        and segment.key == first.key
    )


def _join(run: list[_Segment]) -> Frame:
    """Return one frame for a run of segments."""
    first = run[0]
    if len(run) == 1:
        return first.frame
    headers = first.headers
    head = bytearray(first.frame.head[: headers.payload])
    parts: list[Buffer] = [head]
    for segment in run:
        parts.append(memoryview(segment.frame.head)[headers.payload :])
        parts.extend(segment.frame.parts[1:])
    size = sum(map(len, parts))
    head[headers.transport + TCP_FLAGS] |= run[-1].flags & _PSH
    network = headers.network
    if headers.v6:
        U16.pack_into(head, network + IPV6_LENGTH, size - headers.transport)
    else:
        U16.pack_into(head, network + IPV4_LENGTH, size - network)
        U16.pack_into(head, network + IPV4_CHECKSUM, 0)
        U16.pack_into(head, network + IPV4_CHECKSUM, checksum((head[network : headers.transport],)))
    U16.pack_into(head, headers.checksum, headers.pseudo_sum(head, size - headers.transport))
    return Frame(parts, size, True, True, Gso(first.size, headers.v6))
