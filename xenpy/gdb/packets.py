"""Packets of GDB's remote serial protocol: bytes in, packets out, and the other way round.

Ref: GDB manual, appendix E.1, "Overview"
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_PACKET: Final = 16 << 10
"""Bytes of a packet's content that both sides may send."""
_START, _END, _ESCAPE, _REPEAT = b"$#}*"
_ESCAPED: Final = frozenset((_START, _END, _ESCAPE, _REPEAT))
_ESCAPE_XOR: Final = 0x20
_INTERRUPT: Final = 3
_CHECKSUM_DIGITS: Final = 2
ACK: Final = b"+"
NAK: Final = b"-"


class Signal(Enum):
    """What comes between packets."""

    ACK = "+"
    NAK = "-"
    INTERRUPT = "\x03"


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet that has come."""

    content: bytes
    intact: bool
    """Whether its checksum is right."""


class Oversized(Exception):
    """A packet has no end: the other side does not speak this protocol."""


def encode(content: bytes) -> bytes:
    """Return a packet with this content."""
    escaped = content
    if _ESCAPED & set(content):
        escaped = b"".join(
            bytes((_ESCAPE, byte ^ _ESCAPE_XOR)) if byte in _ESCAPED else bytes((byte,)) for byte in content
        )
    return b"$%b#%02x" % (escaped, sum(escaped) & 0xFF)


def unescape(content: bytes) -> bytes:
    """Return what the other side meant by a packet's content. A lone escape at the end means nothing."""
    if _ESCAPE not in content:
        return content
    first, *others = content.split(bytes((_ESCAPE,)))
    result, index = bytearray(first), 0
    while index < len(others):
        part = others[index]
        if part:
            result += bytes((part[0] ^ _ESCAPE_XOR,)) + part[1:]
        elif index + 1 < len(others):  # an escaped escape, whose second half is one by its looks
            index += 1
            result += bytes((_ESCAPE ^ _ESCAPE_XOR,)) + others[index]
        index += 1
    return bytes(result)


class Decoder:
    """Takes bytes as they come."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[Packet | Signal]:
        """Yield what is complete. Raises Oversized."""
        self._data += data
        while self._data:
            first = self._data[0]
            if first != _START:
                del self._data[0]
                signal = _SIGNALS.get(first)
                if signal is not None:
                    yield signal
                continue
            end = self._data.find(_END)
            if end < 0 or end + _CHECKSUM_DIGITS >= len(self._data):
                if len(self._data) > 2 * MAX_PACKET:  # every byte may be escaped
                    raise Oversized
                return
            content = bytes(self._data[1:end])
            digits = bytes(self._data[end + 1 : end + 1 + _CHECKSUM_DIGITS])
            del self._data[: end + 1 + _CHECKSUM_DIGITS]
            yield Packet(unescape(content), digits.lower() == b"%02x" % (sum(content) & 0xFF))


_SIGNALS: Final = {ord(signal.value): signal for signal in Signal}
