"""A client of a network block device server, over a unix socket: how images that only QEMU understands are used.

Data goes between the socket and guest memory with sendmsg and recvmsg_into; nothing is copied on the way.

Ref: NetworkBlockDevice/nbd, doc/proto.md
"""

from __future__ import annotations

import errno
import os
import queue
import socket
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from xenpy.devices.vbd.backing import Views, split
from xenpy.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_NBDMAGIC: Final = b"NBDMAGIC"
_IHAVEOPT: Final = b"IHAVEOPT"
_GREETING: Final = struct.Struct(">8s8sH")
_OPTION: Final = struct.Struct(">8sII")
_OPTION_REPLY: Final = struct.Struct(">QIII")
_OPTION_REPLY_MAGIC: Final = 0x3E889045565A9
_REQUEST: Final = struct.Struct(">IHHQQI")
_REQUEST_MAGIC: Final = 0x25609513
_REPLY: Final = struct.Struct(">IIQ")
_REPLY_MAGIC: Final = 0x67446698

_FLAG_FIXED_NEWSTYLE: Final = 1 << 0
_OPT_GO: Final = 7
_REP_ACK: Final = 1
_REP_INFO: Final = 3
_REP_ERROR: Final = 1 << 31
_INFO_EXPORT: Final = 0
_MAX_OPTION_REPLY: Final = 1 << 16
_MAX_OPTION_REPLIES: Final = 64

_CMD_READ: Final = 0
_CMD_WRITE: Final = 1
_CMD_FLUSH: Final = 3
_CMD_TRIM: Final = 4

_READ_ONLY: Final = 1 << 1
_SEND_FLUSH: Final = 1 << 2
_SEND_TRIM: Final = 1 << 5

_MAX_LENGTH: Final = 1 << 30
"""Of a trim, whose length is 32 bits wide."""
_ERRNOS: Final = frozenset(
    (errno.EPERM, errno.EIO, errno.ENOMEM, errno.EINVAL, errno.ENOSPC, errno.EOVERFLOW, errno.EOPNOTSUPP)
)


class ServerGone(OSError):
    """The connection is of no use any more; what the last request came to is not known."""


class NbdConnection:
    """One connection, with one request under way at a time. Raises OSError; HostError where the server is not one we can talk to."""

    def __init__(self, path: Path, export: str = "") -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(os.fspath(path))
            self.size, self.flags = self._negotiate(export.encode())
        except BaseException:
            self._socket.close()
            raise
        self._handle = 0

    def _negotiate(self, export: bytes) -> tuple[int, int]:
        nbd, have, flags = _GREETING.unpack(self._receive(_GREETING.size))
        if (nbd, have) != (_NBDMAGIC, _IHAVEOPT) or not flags & _FLAG_FIXED_NEWSTYLE:
            raise HostError("the NBD server does not speak the fixed newstyle protocol")
        option = struct.pack(">I", len(export)) + export + struct.pack(">H", 0)
        self._socket.sendall(
            struct.pack(">I", _FLAG_FIXED_NEWSTYLE) + _OPTION.pack(_IHAVEOPT, _OPT_GO, len(option)) + option
        )
        found: tuple[int, int] | None = None
        for _ in range(_MAX_OPTION_REPLIES):
            magic, _, kind, length = _OPTION_REPLY.unpack(self._receive(_OPTION_REPLY.size))
            if magic != _OPTION_REPLY_MAGIC or length > _MAX_OPTION_REPLY:
                break
            data = self._receive(length)
            if kind & _REP_ERROR:
                raise HostError(f"the NBD server refuses the export: {data.decode('utf-8', 'replace') or hex(kind)}")
            if kind == _REP_INFO and data[:2] == struct.pack(">H", _INFO_EXPORT):
                found = struct.unpack(">QH", data[2:12])
            if kind == _REP_ACK and found is not None:
                return found
        raise HostError("the NBD server's answer to the choice of an export makes no sense")

    def request(
        self, command: int, offset: int, size: int, *, out: Views | None = None, into: Views | None = None
    ) -> None:
        """Make a request and wait for its reply; `out` is written, `into` is read.

        Raises ServerGone, and OSError for what the server says went wrong.
        """
        try:
            error = self._exchange(command, offset, size, out or [], into or [])
        except OSError as gone:
            self._socket.close()
            raise ServerGone(gone.errno or errno.EPIPE, f"NBD server: {gone.strerror or gone}") from None
        if error:
            code = error if error in _ERRNOS else errno.EIO
            raise OSError(code, f"NBD server: {os.strerror(code)}")

    def _exchange(self, command: int, offset: int, size: int, out: Views, into: Views) -> int:
        """Make a request and return the error number of the reply."""
        self._handle += 1
        views = [memoryview(_REQUEST.pack(_REQUEST_MAGIC, 0, command, self._handle, offset, size)), *out]
        while views:
            _, views = split(views, self._socket.sendmsg(views))
        magic, error, handle = _REPLY.unpack(self._receive(_REPLY.size))
        if magic != _REPLY_MAGIC or handle != self._handle:
            raise OSError(errno.EPROTO, "it answers what was not asked")
        while into and not error:
            done = self._socket.recvmsg_into(into)[0]
            if not done:
                raise OSError(errno.EPIPE, "it has gone")
            _, into = split(into, done)
        return int(error)

    def _receive(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            chunk = self._socket.recv(size - len(data))
            if not chunk:
                raise OSError(errno.EPIPE, "the NBD server has gone")
            data += chunk
        return bytes(data)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class NbdBacking:
    """A disk served over NBD, by as many connections as there may be requests at a time.

    All lead to one server that has the image open once, so a flush on one covers what was written on the others.
    """

    granularity = 4096

    def __init__(self, connections: list[NbdConnection]) -> None:
        self._count = len(connections)
        self._free: queue.SimpleQueue[NbdConnection] = queue.SimpleQueue()
        for connection in connections:
            self._free.put(connection)
        first = connections[0]
        self.size = first.size & ~511
        self.writable = not first.flags & _READ_ONLY
        self.can_discard = self.writable and bool(first.flags & _SEND_TRIM)
        self._can_flush = bool(first.flags & _SEND_FLUSH)

    @contextmanager
    def _connection(self) -> Iterator[NbdConnection]:
        connection = self._free.get()
        try:
            yield connection
        finally:
            self._free.put(connection)

    def read(self, views: Views, offset: int) -> None:
        """Fill the views. Raises OSError."""
        with self._connection() as connection:
            connection.request(_CMD_READ, offset, sum(map(len, views)), into=views)

    def write(self, views: Views, offset: int) -> None:
        """Write the views. Raises OSError."""
        with self._connection() as connection:
            connection.request(_CMD_WRITE, offset, sum(map(len, views)), out=views)

    def flush(self) -> None:
        """Have everything written on stable storage. Raises OSError."""
        if self._can_flush:
            with self._connection() as connection:
                connection.request(_CMD_FLUSH, 0, 0)

    def discard(self, offset: int, size: int) -> None:
        """Let the image shrink by a range. Raises OSError."""
        with self._connection() as connection:
            while size:
                step = min(size, _MAX_LENGTH)
                connection.request(_CMD_TRIM, offset, step)
                offset += step
                size -= step

    def refresh(self) -> bool:
        """Return False: an export's size does not change while it is connected."""
        return False

    def parcel(self) -> None:
        """Return None: the server, which does the work, is a process of its own."""

    def close(self) -> None:
        """Close the connections, when nobody uses them any more; who still tries hears ServerGone."""
        free = self._free
        connections = [free.get() for _ in range(self._count)]
        for connection in connections:
            connection.close()
            free.put(connection)
