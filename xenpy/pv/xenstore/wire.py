"""Xenstore messages as bytes, without I/O.

Ref: xen/include/public/io/xs_wire.h, docs/misc/xenstore.txt
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from xenpy.abi.xs_wire import (
    XENSTORE_PAYLOAD_MAX,
    XSD_ERRORS,
    XSD_SOCKMSG_FORMAT,
    XSD_SOCKMSG_SIZE,
    MsgType,
)
from xenpy.errors import Errno

_HEADER = struct.Struct(XSD_SOCKMSG_FORMAT)

_ERROR_PAYLOADS = {Errno[name]: name.encode() + b"\0" for name in XSD_ERRORS}


class ProtocolError(Exception):
    """The peer announced a payload beyond XENSTORE_PAYLOAD_MAX; nothing after it can be understood."""


class Message(NamedTuple):
    """One message; `type` is a plain int because a peer may send any."""

    type: int
    req_id: int
    tx_id: int
    payload: bytes

    def encode(self) -> bytes:
        """Return header and payload."""
        return _HEADER.pack(self.type, self.req_id, self.tx_id, len(self.payload)) + self.payload


class MessageReader:
    """Cut a byte stream into messages; holds at most one incomplete message plus what one feed added."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Append received bytes."""
        self._buffer += data

    def next(self) -> Message | None:
        """Return the next complete message, None if more bytes are needed, or raise ProtocolError."""
        buffer = self._buffer
        if len(buffer) < XSD_SOCKMSG_SIZE:
            return None
        kind, req_id, tx_id, length = _HEADER.unpack_from(buffer)
        if length > XENSTORE_PAYLOAD_MAX:
            raise ProtocolError(f"payload of {length} bytes, at most {XENSTORE_PAYLOAD_MAX} allowed")
        end = XSD_SOCKMSG_SIZE + length
        if len(buffer) < end:
            return None
        payload = bytes(buffer[XSD_SOCKMSG_SIZE:end])
        del buffer[:end]
        return Message(kind, req_id, tx_id, payload)

    @property
    def rest(self) -> bytes:
        """Return the bytes received and not yet returned in a message."""
        return bytes(self._buffer)

    @property
    def buffered(self) -> int:
        """Bytes received and not yet returned in a message."""
        return len(self._buffer)


def encode(kind: int, req_id: int, tx_id: int, payload: bytes) -> bytes:
    """Return one encoded message; cheaper than building a Message first."""
    return _HEADER.pack(kind, req_id, tx_id, len(payload)) + payload


def encode_event(path: bytes, token: bytes) -> bytes:
    """Return an encoded WATCH_EVENT, whose req_id and tx_id are 0."""
    return encode(MsgType.XS_WATCH_EVENT, 0, 0, path + b"\0" + token + b"\0")


def error_payload(errno: Errno) -> bytes:
    """Return the payload of an ERROR reply; an errno that the protocol cannot name becomes EINVAL."""
    return _ERROR_PAYLOADS.get(errno, _ERROR_PAYLOADS[Errno.EINVAL])


def split_strings(payload: bytes) -> list[bytes]:
    """Split a payload of NUL-terminated strings; what follows the last NUL, if anything, is the last item."""
    parts = payload.split(b"\0")
    if not parts[-1]:
        parts.pop()
    return parts
