"""Grants that a device's process looks up by itself, in the guest's own table, which it can read and not change.

See `xenpy.pv.gnttab.looking` for what that is good for: the process sees all of the guest's RAM as it is.
"""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING, Any, Final

from xenpy.pv.gnttab.looking import Looking, Outline

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from xenpy.devices.isolation.grants import Granter

ASK_SIZE: Final = 8
"""Bytes of shared memory, the first of which is 1 while the process must ask for every grant."""
_OWN: Final = 0o600


def open_table(granter: Granter, fds: list[int]) -> Mapping[str, Any] | None:
    """Add a descriptor of the guest's table, for reading, and return the outline; None if there is no looking at it.

    The descriptor is the caller's to close.
    """
    outline = granter.gnttab.outline()
    if outline is None:
        return None
    fd = granter.gnttab.fd
    os.fchmod(fd, _OWN)  # or a process that is nobody could open it anew for writing
    fds.append(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC))
    return outline._asdict()


def tell_whether_plain(granter: Granter, asks: memoryview) -> Callable[[], None]:
    """Keep the first byte of `asks` telling whether somebody wants to see every use of a grant; return what ends that."""
    table = granter.gnttab

    def tell() -> None:
        asks[0] = not table.is_plain

    tell()
    return table.watch_uses(tell)


class RemoteLooking(Looking):
    """Looks up grants in the table behind a descriptor, which is closed, unless the word `asks` says otherwise."""

    def __init__(self, fd: int, outline: Mapping[str, Any], asks: memoryview) -> None:
        words = memoryview(mmap.mmap(fd, os.fstat(fd).st_size, prot=mmap.PROT_READ)).cast("Q")
        os.close(fd)
        super().__init__(words, Outline(**outline))
        self._asks = asks

    def offsets(self, grefs: Sequence[int], *, readonly: bool) -> list[int] | None:
        """Return where in the RAM's memfd pages are; None if the VMM must be asked."""
        return None if self._asks[0] else super().offsets(grefs, readonly=readonly)
