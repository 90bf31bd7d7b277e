"""The wire of 9P2000.L: fields out of a request, and fields into a reply.

Ref: xenpy.abi.p9
"""

from __future__ import annotations

import stat
from struct import Struct, error
from typing import TYPE_CHECKING, Any

from xenpy.abi.p9 import GETATTR_BASIC, GETATTR_REPLY, QID, QT, STATFS_REPLY, V9FS_MAGIC
from xenpy.errors import FrontendError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

_U16, _U32, _U64 = Struct("<H"), Struct("<I"), Struct("<Q")
_DIRENT = Struct("<QB")
_PATH_MASK = (1 << 64) - 1


class Fields:
    """The fields of a request, one after the other. Raises FrontendError where the request ends too early."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._place = 0

    def unpack(self, layout: Struct) -> tuple[Any, ...]:
        """Return the fields of a layout."""
        try:
            values = layout.unpack_from(self._body, self._place)
        except error:
            raise FrontendError("a request of 9P is shorter than its fields") from None
        self._place += layout.size
        return values

    def u16(self) -> int:
        """Return a number of 2 bytes."""
        return int(self.unpack(_U16)[0])

    def u32(self) -> int:
        """Return a number of 4 bytes."""
        return int(self.unpack(_U32)[0])

    def u64(self) -> int:
        """Return a number of 8 bytes."""
        return int(self.unpack(_U64)[0])

    def data(self, size: int) -> memoryview:
        """Return so many bytes."""
        view = memoryview(self._body)[self._place : self._place + size]
        if len(view) < size:
            raise FrontendError("a request of 9P is shorter than its data")
        self._place += size
        return view

    def string(self) -> bytes:
        """Return a string."""
        return bytes(self.data(self.u16()))


def u32(value: int) -> bytes:
    """Return a number of 4 bytes."""
    return _U32.pack(value)


def strings(*values: bytes) -> bytes:
    """Return strings, each behind its length."""
    return b"".join(_U16.pack(len(value)) + value for value in values)


def qids(values: Iterable[bytes]) -> bytes:
    """Return qids behind their number, as the answer to a walk."""
    every = list(values)
    return _U16.pack(len(every)) + b"".join(every)


def qid_of(status: os.stat_result, home: int) -> bytes:
    """Return the qid of a file; `home` is the device that the folder is on."""
    return qid(status.st_mode, status.st_ino if status.st_dev == home else status.st_ino ^ status.st_dev << 40)


def qid(mode: int, path: int) -> bytes:
    """Return a qid; `path` is a number that no other file has."""
    kind = QT.DIR if stat.S_ISDIR(mode) else QT.SYMLINK if stat.S_ISLNK(mode) else QT.FILE
    return QID.pack(kind, 0, path & _PATH_MASK)


def attributes(status: os.stat_result, home: int) -> bytes:
    """Return the answer to a getattr."""
    times = (divmod(ns, 10**9) for ns in (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns))
    flat = [part & _PATH_MASK for time in times for part in time]
    return GETATTR_REPLY.pack(
        GETATTR_BASIC, qid_of(status, home), status.st_mode, status.st_uid, status.st_gid, status.st_nlink,
        status.st_rdev, status.st_size, status.st_blksize, status.st_blocks, *flat, 0, 0, 0, 0,
    )  # fmt: skip


def capacity(found: os.statvfs_result) -> bytes:
    """Return the answer to a statfs."""
    return STATFS_REPLY.pack(
        V9FS_MAGIC, found.f_bsize, found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree,
        found.f_fsid & _PATH_MASK, found.f_namemax,
    )  # fmt: skip


def directory_entry(name: bytes, mode: int, ino: int, place: int) -> bytes:
    """Return an entry of the answer to a readdir; `place` is where the next one is."""
    return qid(mode, ino) + _DIRENT.pack(place, stat.S_IFMT(mode) >> 12) + strings(name)
