"""A disk as it was at one moment: a medium that nobody writes to any more, under any number of overlays."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from xenpy.devices.vbd.overlay import Overlay

if TYPE_CHECKING:
    from xenpy.devices.vbd.backing import Backing, Parcel, Views


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

    def close(self) -> None:
        """Give up one use."""
        with self._lock:
            self._users -= 1
            last = not self._users
        if last:
            self.backing.close()


class _Shared:
    """A frozen disk, for one user."""

    writable = False
    can_discard = False

    def __init__(self, disk: FrozenDisk) -> None:
        self._disk: FrozenDisk | None = disk
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

    def parcel(self) -> Parcel | None:
        """Return what another process needs to read it."""
        return self._backing.parcel()

    def close(self) -> None:
        """Give up this use; idempotent."""
        if self._disk is not None:
            self._disk.close()
            self._disk = None
