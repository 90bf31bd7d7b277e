"""Where a disk's data is: what every kind of image and device can do, and raw ones.

Data moves straight between the host's files and views of guest memory: readv and writev at an offset, with no copy in between.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, Self

from xenpy import libc
from xenpy.abi.blkif import SECTOR_SIZE
from xenpy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Views = list[memoryview]

_BLKPBSZGET: Final = 0x127B
"""Ref: linux/fs.h, BLKPBSZGET: the physical block size of a block device, an unsigned int"""
_DIRECT_ALIGNMENT: Final = 4096
"""Satisfies O_DIRECT whatever the medium's block size."""
_LOCK_DENIED: Final = (errno.EAGAIN, errno.EACCES)


class Parcel(NamedTuple):
    """What another process needs to use a medium that this one has opened: `kind` says what it is, in whose words `fields` are."""

    kind: str
    fields: Mapping[str, Any]
    fds: list[int]


class Backing(Protocol):
    """The medium of a disk. Offsets and sizes are in bytes, multiples of 512; threads may call it at the same time.

    Everything that fails raises OSError. Callers stay within `size`.
    """

    size: int
    writable: bool
    can_discard: bool
    granularity: int
    """Size of the blocks that the medium works in, in bytes."""

    def read(self, views: Views, offset: int) -> None:
        """Fill the views, one after the other, from `offset`."""

    def write(self, views: Views, offset: int) -> None:
        """Write the views, one after the other, from `offset`; it need not be on stable storage before `flush`."""

    def flush(self) -> None:
        """Return once all that was written before is on stable storage."""

    def discard(self, offset: int, size: int) -> None:
        """Let go of a range, which reads as zeroes or as before."""

    def refresh(self) -> bool:
        """Look at the medium's size anew; tell whether it changed."""

    def grow(self, size: int) -> None:
        """Make the medium larger; `refresh` tells. Raises ConfigError where that is not to be had."""

    def parcel(self) -> Parcel | None:
        """Return what another process needs to use the medium too, or None if this one alone can."""

    def close(self) -> None:
        """Free it."""


def total(views: Sequence[memoryview]) -> int:
    """Return how many bytes the views have."""
    return sum(map(len, views))


def split(views: Views, size: int) -> tuple[Views, Views]:
    """Return views of the first `size` bytes, and of the rest."""
    head: Views = []
    for index, view in enumerate(views):
        if size < len(view):
            if size:
                head.append(view[:size])
            return head, [view[size:], *views[index + 1 :]]
        head.append(view)
        size -= len(view)
    return head, []


def check_growth(name: str, before: int, size: int, *, writable: bool) -> None:
    """Raise ConfigError unless a medium may be given another size in bytes."""
    if not writable:
        raise ConfigError(f"{name}: what is read only, or under an ephemeral disk, keeps its size")
    if size % SECTOR_SIZE:
        raise ConfigError(f"{name}: {size} bytes are not whole sectors of {SECTOR_SIZE}")
    if size < before:
        raise ConfigError(f"{name}: {size} bytes are less than its {before}; a disk in use is made larger only")


class RawBacking:
    """A raw image or a block device.

    With `direct`, what is aligned bypasses the page cache. The file is locked against writers elsewhere, if its file system can, as QEMU
    does with its own. Raises ConfigError when it cannot be opened.
    """

    def __init__(
        self, path: str, *, writable: bool, direct: bool = False, lock_for_writing: bool | None = None
    ) -> None:
        self._path = path
        self.writable = writable
        self._fd = self._open(os.O_RDWR if writable else os.O_RDONLY)
        self._direct_fd = -1
        try:
            self._lock(writable if lock_for_writing is None else lock_for_writing)
            mode = os.fstat(self._fd).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
                raise ConfigError(f"{path}: neither a file nor a block device")
            if direct:
                self._open_direct()
            self.size = self._size()
            self.granularity = self._physical_block(mode)
        except BaseException:
            self.close()
            raise
        self.can_discard = writable

    @classmethod
    def adopt(cls, fields: Mapping[str, Any], fds: Sequence[int]) -> Self:
        """Return the medium that a parcel of another process describes."""
        self = cls.__new__(cls)
        self._path, self.writable, self.granularity = fields["path"], fields["writable"], fields["granularity"]
        self._fd, self._direct_fd = (*fds, -1)[:2]
        self.size = self._size()
        self.can_discard = self.writable
        return self

    def parcel(self) -> Parcel:
        """Return what another process needs to use the file too; the lock on it is the descriptors' and so goes along."""
        fields = {"path": self._path, "writable": self.writable, "granularity": self.granularity}
        return Parcel("raw", fields, [fd for fd in (self._fd, self._direct_fd) if fd >= 0])

    def _open(self, flags: int) -> int:
        try:
            return os.open(self._path, flags | os.O_CLOEXEC)
        except OSError as error:
            raise ConfigError(f"{self._path}: cannot be opened ({error.strerror})") from None

    def _open_direct(self) -> None:
        """Open the file once more, past the page cache; file systems without O_DIRECT go without."""
        try:
            self._direct_fd = os.open(
                self._path, (os.O_RDWR if self.writable else os.O_RDONLY) | os.O_DIRECT | os.O_CLOEXEC
            )
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise ConfigError(f"{self._path}: cannot be opened for direct I/O ({error.strerror})") from None

    def _lock(self, writing: bool) -> None:
        kind = fcntl.F_WRLCK if writing else fcntl.F_RDLCK
        try:
            # struct flock of 64-bit Linux: type, whence, start, length (0: to the end), pid
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0))
        except OSError as error:
            if error.errno in _LOCK_DENIED:
                raise ConfigError(f"{self._path}: in use by another guest or process") from None

    def _size(self) -> int:
        return os.lseek(self._fd, 0, os.SEEK_END) & ~511

    def _physical_block(self, mode: int) -> int:
        if stat.S_ISBLK(mode):
            return int(struct.unpack("I", fcntl.ioctl(self._fd, _BLKPBSZGET, bytes(4)))[0])
        return os.fstat(self._fd).st_blksize

    def _fd_for(self, views: Views, offset: int) -> int:
        if self._direct_fd < 0 or offset % _DIRECT_ALIGNMENT or any(len(view) % _DIRECT_ALIGNMENT for view in views):
            return self._fd
        return self._direct_fd

    def read(self, views: Views, offset: int) -> None:
        """Fill the views from the file. Raises OSError; EIO where the file ends early."""
        fd = self._fd_for(views, offset)
        wanted = total(views)
        while (done := os.preadv(fd, views, offset)) != wanted:
            if not done:
                raise OSError(errno.EIO, f"{self._path} ends at {offset}")
            _, views = split(views, done)
            offset += done
            wanted -= done
            fd = self._fd

    def write(self, views: Views, offset: int) -> None:
        """Write the views to the file. Raises OSError."""
        fd = self._fd_for(views, offset)
        wanted = total(views)
        while (done := os.pwritev(fd, views, offset)) != wanted:
            _, views = split(views, done)
            offset += done
            wanted -= done
            fd = self._fd

    def flush(self) -> None:
        """Have the file's data on stable storage. Raises OSError."""
        os.fdatasync(self._fd)

    def discard(self, offset: int, size: int) -> None:
        """Punch a hole. Raises OSError, EOPNOTSUPP if neither file system nor device can."""
        libc.punch_hole(self._fd, offset, size)

    def refresh(self) -> bool:
        """Look at the file's size anew; tell whether it changed."""
        before, self.size = self.size, self._size()
        return self.size != before

    def grow(self, size: int) -> None:
        """Make the file larger; what is added reads as zeroes. Raises ConfigError."""
        check_growth(self._path, self.size, size, writable=self.writable)
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            raise ConfigError(
                f"{self._path} is a block device: it is resized by what it is made with, such as lvextend"
            )
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            raise ConfigError(f"{self._path}: cannot be made {size} bytes large ({error.strerror})") from None

    def close(self) -> None:
        """Close the file."""
        for fd in (self._fd, self._direct_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._direct_fd = -1


class EmptyDrive:
    """A drive with no medium in it."""

    size = 0
    writable = False
    can_discard = False
    granularity = 512

    def read(self, views: Views, offset: int) -> None:
        """Raise OSError."""
        raise OSError(errno.ENOMEDIUM, f"{total(views)} bytes at {offset}: {os.strerror(errno.ENOMEDIUM)}")

    write = read

    def flush(self) -> None:
        """Do nothing: there is nothing to flush."""

    def discard(self, offset: int, size: int) -> None:
        """Do nothing: there is nothing to discard."""

    def refresh(self) -> bool:
        """Return False: nothing changes."""
        return False

    def grow(self, size: int) -> None:
        """Raise ConfigError."""
        raise ConfigError(f"an empty drive cannot have {size} bytes")

    def parcel(self) -> None:
        """Return None: there is nothing to serve."""

    def close(self) -> None:
        """Do nothing: there is nothing to free."""
