"""A disk as it was at one moment: a medium that nobody writes to any more, under any number of overlays."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, Final

from xenpy import libc
from xenpy.devices.vbd.backing import check_growth
from xenpy.devices.vbd.overlay import CLUSTER, Overlay
from xenpy.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from xenpy.devices.vbd.backing import Backing, Parcel, Views


_COPY_CLUSTERS: Final = 256
"""So many are copied at once."""


class FrozenDisk:
    """A medium that several disks read. It is this object's own, and is closed when the last of its users has closed it."""

    def __init__(self, backing: Backing) -> None:
        self.backing = backing
        self._users = 1
        self._lock = threading.Lock()

    def open(self) -> Backing:
        """Return a disk that begins as this one: what is written to it is its own, and gone when it is closed. Raises HostError."""
        with self._lock:
            self._users += 1
        shared = _Shared(self)
        if not self.backing.writable:
            return shared
        try:
            return Overlay(shared)
        except BaseException:
            self.close()
            raise

    def write_layers(self, data: Path, dirty: Path) -> bool:
        """Write what lies over the image itself to two new files: the data, and a byte a cluster; tell whether there is anything."""
        self.backing.flush()
        layers = list(_layers(self.backing))
        if not layers:
            return False
        marks = bytearray(-(-self.backing.size // CLUSTER))
        for layer in layers:
            for start, size in layer.written():
                marks[start // CLUSTER : -(-(start + size) // CLUSTER)] = b"\1" * -(-size // CLUSTER)
        dirty.write_bytes(marks)
        with data.open("wb") as file:
            file.truncate(len(marks) * CLUSTER)
            start = marks.find(1)
            while start >= 0:
                end = min(marks.find(0, start) % (len(marks) + 1), start + _COPY_CLUSTERS)
                piece = bytearray(min(end * CLUSTER, self.backing.size) - start * CLUSTER)
                self.backing.read([memoryview(piece)], start * CLUSTER)
                os.pwrite(file.fileno(), piece, start * CLUSTER)
                start = marks.find(1, end)
        return True

    @classmethod
    def read_layers(cls, base: Backing, data: Path, dirty: Path, *, writable: bool, layers: bool) -> FrozenDisk:
        """Return the disk that `write_layers` wrote, over its image. Raises HostError."""
        if not writable:
            return cls(base)
        if not layers:
            return cls(_Writable(base))
        try:
            marks = dirty.read_bytes()
            fd = os.open(data, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(f"{error.filename}: {error.strerror}") from None
        map_fd = libc.memfd("xenpy-overlay", len(marks))
        os.write(map_fd, marks)
        if len(marks) != -(-base.size // CLUSTER) or os.fstat(fd).st_size != len(marks) * CLUSTER:
            raise HostError(f"{data} and {dirty} do not fit the image under them")
        return cls(Overlay.adopt(base, (fd, map_fd)))

    def close(self) -> None:
        """Give up one use."""
        with self._lock:
            self._users -= 1
            last = not self._users
        if last:
            self.backing.close()


def _layers(backing: Backing) -> Iterator[Overlay]:
    """Yield the overlays over an image, the uppermost first."""
    while True:
        if isinstance(backing, Overlay):
            yield backing
            backing = backing.base
        elif isinstance(backing, _Shared):
            backing = backing.disk.backing
        else:
            return


class _Shared:
    """A frozen disk, for one user."""

    writable = False
    can_discard = False

    def __init__(self, disk: FrozenDisk) -> None:
        self.disk = disk
        self._open = True
        self._backing = disk.backing
        self.size = disk.backing.size
        self.granularity = disk.backing.granularity

    def read(self, views: Views, offset: int) -> None:
        """Fill the views. Raises OSError."""
        self._backing.read(views, offset)

    def write(self, views: Views, offset: int) -> None:
        """Raise OSError: nobody writes here."""
        raise PermissionError(f"{len(views)} pieces at {offset} of a frozen disk")

    def flush(self) -> None:
        """Do nothing: nothing was written."""

    def discard(self, offset: int, size: int) -> None:
        """Raise OSError: nobody writes here."""
        raise PermissionError(f"{size} bytes at {offset} of a frozen disk")

    def refresh(self) -> bool:
        """Return False: the size stays what it was."""
        return False

    def grow(self, size: int) -> None:
        """Raise ConfigError."""
        check_growth("a frozen disk", self.size, size, writable=False)

    def parcel(self) -> Parcel | None:
        """Return what another process needs to read it."""
        return self._backing.parcel()

    def close(self) -> None:
        """Give up this use; idempotent."""
        if self._open:
            self._open = False
            self.disk.close()


class _Writable:
    """An image that is only read, of a disk that its guests may write: they do so to overlays."""

    writable = True

    def __init__(self, base: Backing) -> None:
        self._base = base

    def __getattr__(self, name: str) -> Any:
        return getattr(self._base, name)
