"""Messages between a device's process and ours, with file descriptors: a pair of sockets that keep message boundaries.

A message is one byte that says what it is, and its payload. What comes from the other end is bounded by `MAX_MESSAGE`.
"""

from __future__ import annotations

import os
import select
import socket
import struct
from array import array
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_MESSAGE: Final = 1 << 16
MAX_FDS: Final = 64
PID: Final = struct.Struct("=i")
"""The payload of FORKED and UNGUARD, and how that of GUARD begins."""


class Kind(IntEnum):
    """What a message is."""

    SETUP = 1
    """To the process: what it serves, as JSON, and all file descriptors that it gets."""
    STOP = 2
    """To the process: end after what is under way."""
    FAILED = 3
    """From it: the frontend broke the protocol, or we have a bug; why, as text."""
    IDLE = 4
    """From it, once for each queue: all that waited for it when it began has been done."""
    MAP = 5
    """From it: a flag byte (1: read-only), then 32-bit grant references."""
    MAPPED = 6
    """The answer: 64-bit offsets in the guest's memory."""
    REFUSED = 7
    """The other answer: why, as text."""
    UNMAP = 8
    """From it: 32-bit grant references that it uses no more."""
    UNMAPPED = 9
    """The answer."""
    FORK = 10
    """To the template: make a process for the socket that comes along."""
    FORKED = 11
    """The answer: the process' number, and a descriptor of it."""
    GUARD = 12
    """To the template: when we are no more, kill the process of this number and descriptor, and remove the directory that follows."""
    UNGUARD = 13
    """To the template: do not, any more."""
    TELL = 14
    """To the process: what has changed about what it serves, as JSON, with descriptors."""
    NOTE = 15
    """From it: what the next process should know, or what we should do something about, as JSON."""


class Message(NamedTuple):
    """A message as it came; the descriptors are the receiver's to close."""

    kind: Kind
    payload: bytes
    fds: list[int]

    def close(self) -> None:
        """Close the descriptors that came along."""
        for fd in self.fds:
            os.close(fd)


class ChannelError(Exception):
    """What came is no message."""


class Channel:
    """One end of a connection; any thread may send, one receives."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    @staticmethod
    def pair() -> tuple[Channel, Channel]:
        """Return both ends of a new connection."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return Channel(ours), Channel(theirs)

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._socket.fileno()

    def send(self, kind: Kind, payload: bytes = b"", fds: Sequence[int] = (), *, wait: bool = True) -> None:
        """Send a message. Raises OSError if the other end has gone, BlockingIOError if it has much to read and we do not `wait`."""
        flags = socket.MSG_NOSIGNAL if wait else socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT
        # Not socket.send_fds, which does nothing with its flags. Ref: CPython 3.11, Lib/socket.py
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
        self._socket.sendmsg([bytes((kind,)) + payload], rights, flags)

    def wait(self, seconds: float) -> bool:
        """Wait for a message, or the other end's going, that long; tell whether `receive` returns at once."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def receive(self) -> Message | None:
        """Wait for a message; None when the other end has gone. Raises ChannelError."""
        try:
            data, fds, flags, _ = socket.recv_fds(self._socket, MAX_MESSAGE, MAX_FDS)
        except ConnectionResetError:  # it died before it had read all we sent; what it has said is still to be heard
            data, fds, flags, _ = socket.recv_fds(self._socket, MAX_MESSAGE, MAX_FDS)
        for fd in fds:
            os.set_inheritable(fd, False)
        if not data:
            return None
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or data[0] not in Kind.__members__.values():
            raise ChannelError(f"message of {len(data)} bytes and kind {data[0]}")
        return Message(Kind(data[0]), data[1:], fds)

    def close(self) -> None:
        """Close this end."""
        self._socket.close()
