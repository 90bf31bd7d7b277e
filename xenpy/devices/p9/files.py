"""What a client has in hand: places in the tree, some of them open."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from xenpy.abi.p9 import NO_UID
from xenpy.devices.p9.messages import directory_entry
from xenpy.devices.p9.tree import fault

if TYPE_CHECKING:
    from xenpy.devices.p9.tree import Node

MAX_FIDS: Final = 1 << 16


@dataclass(slots=True)
class Fid:
    """A handle of the client's; `fd` is -1 until it is opened. `uid` is the user it attached as, NO_UID for nobody in particular."""

    node: Node
    uid: int = NO_UID
    fd: int = -1
    listing: list[tuple[bytes, int, int]] | None = None
    """Of an open directory: name, mode and inode of each entry, as of the last rewind."""

    def descriptor(self) -> int:
        """Return the open file's descriptor. Raises OSError(EBADF)."""
        if self.fd < 0:
            raise fault(errno.EBADF)
        return self.fd

    def entries(self, place: int, size: int) -> bytes:
        """Return entries of an open directory from a place on, as many as so many bytes hold."""
        if place == 0 or self.listing is None:
            self.listing = _listing(self.descriptor())
        data = bytearray()
        for number, (name, mode, ino) in enumerate(self.listing[place:], place + 1):
            entry = directory_entry(name, mode, ino, number)
            if len(data) + len(entry) > size:
                break
            data += entry
        return bytes(data)


class Fids:
    """The handles of one client; at most `max_open` of them open."""

    def __init__(self, max_open: int) -> None:
        self._max_open = max_open
        self._open = 0
        self._fids: dict[int, Fid] = {}

    def __getitem__(self, number: int) -> Fid:
        fid = self._fids.get(number)
        if fid is None:
            raise fault(errno.EBADF)
        return fid

    def __len__(self) -> int:
        return len(self._fids)

    def add(self, number: int, fid: Fid) -> None:
        """Give a handle a number that no other has."""
        if number in self._fids:
            raise fault(errno.EBADF)
        if len(self._fids) >= MAX_FIDS:
            raise fault(errno.ENFILE)
        self._fids[number] = fid

    def make_room(self) -> None:
        """Raise OSError(ENFILE) unless one more may be opened."""
        if self._open >= self._max_open:
            raise fault(errno.ENFILE)

    def opened(self, fid: Fid, fd: int) -> None:
        """Make a handle that of an open file."""
        fid.fd = fd
        self._open += 1

    def close(self, number: int) -> None:
        """Forget a handle."""
        fid = self[number]
        if fid.fd >= 0:
            os.close(fid.fd)
            self._open -= 1
        del self._fids[number]

    def close_all(self) -> None:
        """Forget all handles."""
        for number in list(self._fids):
            self.close(number)


def _listing(fd: int) -> list[tuple[bytes, int, int]]:
    here = os.fstat(fd).st_ino
    # What is above the folder is nobody's business: both names lead nowhere, and clients have ways of their own to go up.
    entries = [(b".", stat.S_IFDIR, here), (b"..", stat.S_IFDIR, here)]
    with os.scandir(fd) as found:
        for entry in found:
            if entry.is_symlink():
                mode = stat.S_IFLNK
            elif entry.is_dir(follow_symlinks=False):
                mode = stat.S_IFDIR
            else:
                mode = stat.S_IFREG if entry.is_file(follow_symlinks=False) else 0
            entries.append((os.fsencode(entry.name), mode, entry.inode()))
    return entries
