"""What a sender left undone and a receiver does not do itself: checksums and TCP segmentation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.devices.vif.checksum import checksum
from xenpy.devices.vif.frame import Frame
from xenpy.devices.vif.headers import (
    IPV4_CHECKSUM,
    IPV4_ID,
    IPV4_LENGTH,
    IPV6_HLEN,
    IPV6_LENGTH,
    TCP,
    TCP_FLAGS,
    TCP_SEQ,
    U16,
    U32,
    UDP,
    Headers,
    parse,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xenpy.devices.vif.frame import Offloads

_FIN, _PSH, _CWR = 0x01, 0x08, 0x80
_U16: Final = 0xFFFF
_U32: Final = 0xFFFF_FFFF
MIN_MSS: Final = 48
"""Smaller parts than these would have one slot of a guest make thousands of frames."""


def adapt(frame: Frame, receiver: Offloads) -> Iterator[Frame]:
    """Yield what the receiver can take: the frame itself, or frames that say the same.

    Nothing, if there is no such thing: a frame too large for it, or one whose headers are not what its flags say.
    """
    gso = frame.gso
    if gso is not None and not (receiver.gso6 if gso.v6 else receiver.gso4):
        for part in segment(frame):
            yield from adapt(part, receiver)
        return
    if frame.size > receiver.max_size:
        return
    if frame.csum_blank and not (receiver.csum and receiver.csum6):
        headers = parse(frame.head)
        if headers is None:
            return
        if not (receiver.csum6 if headers.v6 else receiver.csum):
            yield complete(frame, headers)
            return
    yield frame


def complete(frame: Frame, headers: Headers) -> Frame:
    """Return the frame with its transport checksum filled in; bytes behind the IP packet's end count for nothing."""
    head = bytearray(frame.head)
    end = _packet_end(head, headers)
    size = min(end, frame.size) - headers.transport
    U16.pack_into(head, headers.checksum, 0)
    parts = [memoryview(head)[headers.transport :], *frame.parts[1:]]
    pseudo = headers.pseudo_sum(head, size)
    U16.pack_into(head, headers.checksum, _never_zero(checksum(_cut(parts, size), pseudo), headers.protocol))
    return Frame([head, *frame.parts[1:]], frame.size, validated=True, gso=frame.gso, hash=frame.hash)


def blank(frame: Frame, headers: Headers) -> Frame:
    """Return the frame with its checksum blank as Linux wants it: holding the sum of the pseudo-header."""
    head = bytearray(frame.head)
    pseudo = headers.pseudo_sum(head, frame.size - headers.transport)
    U16.pack_into(head, headers.checksum, pseudo)
    return Frame([head, *frame.parts[1:]], frame.size, True, True, frame.gso, frame.hash)


def segment(frame: Frame) -> Iterator[Frame]:
    """Yield the TCP segments of a frame with `gso`, complete with checksums; nothing if it is not TCP over the right IP."""
    gso, headers = frame.gso, parse(frame.head)
    if gso is None or headers is None or headers.protocol != TCP or headers.v6 != gso.v6:
        return
    whole = memoryview(b"".join(frame.parts))  # the one copy: its slices are what goes out
    header, payload = whole[: headers.payload], whole[headers.payload : frame.size]
    mss = max(gso.size, MIN_MSS)
    for number, start in enumerate(range(0, max(len(payload), 1), mss)):
        part = payload[start : start + mss]
        head = bytearray(header)
        _set_lengths(head, headers, len(part), number)
        sequence = U32.unpack_from(header, headers.transport + TCP_SEQ)[0]
        U32.pack_into(head, headers.transport + TCP_SEQ, (sequence + start) & _U32)
        if number:
            head[headers.transport + TCP_FLAGS] &= ~_CWR & 0xFF
        if start + mss < len(payload):
            head[headers.transport + TCP_FLAGS] &= ~(_FIN | _PSH) & 0xFF
        yield complete(Frame([head, part], len(head) + len(part), hash=frame.hash), headers)


def _set_lengths(head: bytearray, headers: Headers, payload: int, number: int) -> None:
    """Make the IP header that of the segment `number` with so much payload."""
    network = headers.network
    if headers.v6:
        U16.pack_into(head, network + IPV6_LENGTH, headers.payload - network - IPV6_HLEN + payload)
        return
    identity = U16.unpack_from(head, network + IPV4_ID)[0]
    U16.pack_into(head, network + IPV4_LENGTH, headers.payload - network + payload)
    U16.pack_into(head, network + IPV4_ID, (identity + number) & _U16)
    U16.pack_into(head, network + IPV4_CHECKSUM, 0)
    U16.pack_into(head, network + IPV4_CHECKSUM, checksum((head[network : headers.transport],)))


def _packet_end(head: bytearray, headers: Headers) -> int:
    """Return where the IP packet ends, which short frames pad; a length that stops short of the payload is no length."""
    network = headers.network
    if headers.v6:
        end = network + IPV6_HLEN + int(U16.unpack_from(head, network + IPV6_LENGTH)[0])
    else:
        end = network + int(U16.unpack_from(head, network + IPV4_LENGTH)[0])
    return end if end >= headers.payload else _U16 + network


def _cut(parts: list[memoryview | bytes | bytearray], size: int) -> Iterator[memoryview | bytes | bytearray]:
    """Yield the first `size` bytes of parts."""
    for part in parts:
        if size <= 0:
            return
        yield part if len(part) <= size else part[:size]
        size -= len(part)


def _never_zero(value: int, protocol: int) -> int:
    """Return a checksum as its protocol writes it: to UDP, zero means that there is none."""
    return _U16 if protocol == UDP and not value else value
