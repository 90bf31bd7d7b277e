"""A disk whose writes go to a temporary file and are gone with it; the image under it is only read."""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
from typing import TYPE_CHECKING, Final, Self

from xenpy import libc
from xenpy.devices.vbd.backing import Parcel, check_growth, split
from xenpy.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from xenpy.devices.vbd.backing import Backing, Views

_CLUSTER_SHIFT: Final = 12
CLUSTER: Final = 1 << _CLUSTER_SHIFT
"""Bytes that are copied up together; what file systems write by, so that they seldom are."""
_CLEAN, _DIRTY = b"\0", b"\1"


class Overlay:
    """Copy-on-write over `base`, in a file that has no name and so cannot be left behind.

    Flushes have nothing to do: there is no next run to keep anything for. Raises HostError if there is no room for the file.
    """

    writable = True
    can_discard = True
    granularity = CLUSTER

    def __init__(self, base: Backing) -> None:
        clusters = -(-base.size // CLUSTER)
        # One byte a cluster, as pages that the kernel provides when they are first written: nothing for a disk that is not.
        map_fd = libc.memfd("xenpy-overlay", max(clusters, 1))
        try:
            fd = os.open(tempfile.gettempdir(), os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
            os.ftruncate(fd, clusters << _CLUSTER_SHIFT)
        except OSError as error:
            os.close(map_fd)
            raise HostError(
                f"{tempfile.gettempdir()}: no temporary file for a disk's changes ({error.strerror})"
            ) from None
        self._use(base, fd, map_fd)

    def _use(self, base: Backing, fd: int, map_fd: int) -> None:
        self._base, self._fd, self._map_fd = base, fd, map_fd
        self.size = base.size
        self._map = mmap.mmap(map_fd, os.fstat(map_fd).st_size)
        self._copying = threading.Lock()

    @classmethod
    def adopt(cls, base: Backing, fds: Sequence[int]) -> Self:
        """Return the overlay that a parcel of another process describes; one process at a time may write it."""
        self = cls.__new__(cls)
        self._use(base, *fds)
        return self

    def parcel(self) -> Parcel | None:
        """Return what another process needs to use it too, if the image under it can go along."""
        base = self._base.parcel()
        if base is None:
            return None
        return Parcel("overlay", {"kind": base.kind, "fields": base.fields}, [self._fd, self._map_fd, *base.fds])

    def read(self, views: Views, offset: int) -> None:
        """Fill the views, from whichever of the two files has the data. Raises OSError."""
        for dirty, start, size in self._runs(offset, sum(map(len, views))):
            part, views = split(views, size)
            if dirty:
                self._read_own(part, start)
            else:
                self._base.read(part, start)

    @property
    def base(self) -> Backing:
        """Return what lies under it."""
        return self._base

    def written(self) -> Iterator[tuple[int, int]]:
        """Yield (offset, size) of what was written, in whole clusters."""
        for dirty, start, size in self._runs(0, self.size):
            if dirty:
                yield start, size

    def _runs(self, offset: int, size: int) -> Iterator[tuple[bool, int, int]]:
        """Yield (written or not, offset, size) of the pieces of a range."""
        end = offset + size
        last = -(-end // CLUSTER)
        while offset < end:
            cluster = offset >> _CLUSTER_SHIFT
            dirty = self._map[cluster] != 0
            border = self._map.find(_CLEAN if dirty else _DIRTY, cluster, last)
            stop = end if border < 0 else min(end, border << _CLUSTER_SHIFT)
            yield dirty, offset, stop - offset
            offset = stop

    def _read_own(self, views: Views, offset: int) -> None:
        while views:
            done = os.preadv(self._fd, views, offset)
            _, views = split(views, done)
            offset += done

    def write(self, views: Views, offset: int) -> None:
        """Write the views to the temporary file. Raises OSError."""
        end = offset + sum(map(len, views))
        if offset % CLUSTER:
            self._copy_up(offset >> _CLUSTER_SHIFT)
        if end % CLUSTER:
            self._copy_up(end >> _CLUSTER_SHIFT)
        start = offset
        while views:
            done = os.pwritev(self._fd, views, offset)
            _, views = split(views, done)
            offset += done
        self._mark(start, end)

    def _copy_up(self, cluster: int) -> None:
        """Have a cluster that will be written in part, in the temporary file."""
        with self._copying:
            if not self._map[cluster]:
                offset = cluster << _CLUSTER_SHIFT
                data = bytearray(min(CLUSTER, self.size - offset))
                self._base.read([memoryview(data)], offset)
                os.pwrite(self._fd, data, offset)
                self._map[cluster] = 1

    def _mark(self, start: int, end: int) -> None:
        first, last = start >> _CLUSTER_SHIFT, -(-end // CLUSTER)
        self._map[first:last] = _DIRTY * (last - first)

    def flush(self) -> None:
        """Do nothing."""

    def discard(self, offset: int, size: int) -> None:
        """Have the whole clusters of a range read as zeroes. Raises OSError."""
        start = -(-offset // CLUSTER) << _CLUSTER_SHIFT
        end = (offset + size) & -CLUSTER
        if start < end:
            libc.punch_hole(self._fd, start, end - start)
            self._mark(start, end)

    def refresh(self) -> bool:
        """Return False: the size stays what it was."""
        return False

    def grow(self, size: int) -> None:
        """Raise ConfigError."""
        check_growth("the image", self.size, size, writable=False)

    def close(self) -> None:
        """Drop what was written, and close the image."""
        self._map.close()
        os.close(self._map_fd)
        os.close(self._fd)
        self._base.close()
