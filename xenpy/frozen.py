"""Guest RAM as it was at one moment: a file that nobody changes any more and any number of guests map copy-on-write."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from typing import Final

from xenpy import libc

Run = tuple[int, int, int, bytes]
"""gpa, size and offset in the file, in bytes; and one byte a page, 1 where the guest had given the page back."""

_CHUNK: Final = 64 << 10
_PIECE: Final = 16 << 20
_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


@dataclass(frozen=True, slots=True)
class FrozenRam:
    """The RAM of a guest that stood still. `fd` is this object's own."""

    fd: int
    runs: tuple[Run, ...]

    @property
    def size(self) -> int:
        """Return the size of the file in bytes."""
        return max((offset + size for _, size, offset, _ in self.runs), default=0)

    def seal(self) -> None:
        """Have nobody be able to change it. Raises OSError(EBUSY) while somebody has mapped the file to write to it."""
        if not fcntl.fcntl(self.fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SEAL:
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)

    def close(self) -> None:
        """Close the file; who has mapped it keeps what it has."""
        os.close(self.fd)


def copy_of(hva: int, runs: tuple[Run, ...]) -> FrozenRam:
    """Return a copy of RAM whose gpa 0 is at `hva`."""
    fd = os.memfd_create("xenpy-ram", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, FrozenRam(fd, runs).size)
        for gpa, size, offset, _ in runs:
            copy_sparse(libc.buffer(hva + gpa, size), fd, offset)
    except BaseException:
        os.close(fd)
        raise
    return FrozenRam(fd, runs)


def copy_file(source: int, target: int, size: int) -> None:
    """Copy a file into an empty one, leaving out the holes."""
    os.ftruncate(target, size)
    end = 0
    while end < size:
        try:
            start = os.lseek(source, end, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole is left
            return
        end = os.lseek(source, start, os.SEEK_HOLE)
        while start < end:
            data = os.pread(source, min(_PIECE, end - start), start)
            copy_sparse(memoryview(data), target, start)
            start += len(data)


def copy_sparse(data: memoryview, fd: int, offset: int) -> None:
    """Write data to a file that is empty at `offset`, leaving out what is zero."""
    zeroes = bytes(_CHUNK)
    for start in range(0, len(data), _CHUNK):
        piece = data[start : start + _CHUNK]
        if piece != zeroes[: len(piece)]:
            os.pwrite(fd, piece, offset + start)
