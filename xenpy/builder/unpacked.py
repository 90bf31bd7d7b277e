"""Unpacked kernels on disk: unpacking costs a second on a slow host, and nothing but a disk read the next time.

Entries are named by the SHA-256 of the packed file. A link named by the packed file's path, size and times leads to its
entry without the file being read. Nothing here can fail: without a writable cache every kernel is unpacked anew.
"""

from __future__ import annotations

import mmap
import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from xenpy.errors import HostError

if TYPE_CHECKING:
    from xenpy.builder.elf import Buffer

KEPT: Final = 8
"""How many kernels are kept; the least recently used go first. One takes about 40 MB."""

_HOLE: Final = 16 << 10  # granularity in which zeroes are left out of a file; a third of a Linux kernel is zeroes


def map_file(path: Path | str) -> mmap.mmap:
    """Map a file read-only. Raises OSError, and ValueError for an empty file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(descriptor)


class UnpackedCache:
    """The cached unpacked form of one packed kernel file."""

    def __init__(self, path: Path, status: os.stat_result) -> None:
        from xenpy.cache import cache_directory

        self._directory: Path | None
        try:
            self._directory = cache_directory("vmlinux")
        except HostError:
            self._directory = None
        # The kernel sets ctime, so a file at the same path with the same times is the same file.
        where = zlib.crc32(os.fsencode(path.absolute()))
        self._link = f"{where:08x}-{status.st_size:x}-{status.st_mtime_ns:x}-{status.st_ctime_ns:x}.link"

    def by_identity(self) -> Path | None:
        """Return the entry of the file if it is known by path and times, without reading it."""
        if self._directory is None:
            return None
        try:
            return self._used(self._directory / (self._directory / self._link).readlink().name)
        except OSError:
            return None

    def by_content(self, packed: Buffer) -> Path | None:
        """Return the entry of the file if it is known by its content."""
        if self._directory is None:
            return None
        name = _digest(packed)
        try:
            entry = self._used(self._directory / name)
        except OSError:
            return None
        self._remember(self._directory, name)
        return entry

    def store(self, packed: Buffer, unpacked: bytes) -> Path | None:
        """Keep the unpacked form and return its file, or None if the cache cannot be written."""
        if self._directory is None:
            return None
        name = _digest(packed)
        try:
            _publish(self._directory / name, unpacked)
        except OSError:
            return None
        self._remember(self._directory, name)
        _prune(self._directory)
        return self._directory / name

    def _used(self, entry: Path) -> Path:
        os.utime(entry)
        return entry

    def _remember(self, directory: Path, name: str) -> None:
        link = directory / self._link
        try:
            link.unlink(missing_ok=True)
            link.symlink_to(name)
        except OSError:
            pass  # it will be found by its content


def _digest(packed: Buffer) -> str:
    import hashlib

    return hashlib.sha256(packed).hexdigest()


def _publish(target: Path, data: bytes) -> None:
    import tempfile

    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            zeroes = bytes(_HOLE)
            for offset in range(0, len(data), _HOLE):
                piece = data[offset : offset + _HOLE]
                if piece != zeroes:
                    stream.seek(offset)
                    stream.write(piece)
            stream.truncate(len(data))
        Path(name).rename(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _prune(directory: Path) -> None:
    try:
        entries = [entry for entry in directory.iterdir() if not entry.name.startswith(".")]
        kernels = [entry for entry in entries if not entry.is_symlink()]
        kernels.sort(key=lambda entry: entry.stat().st_mtime, reverse=True)
        for old in kernels[KEPT:]:
            old.unlink(missing_ok=True)
        for link in entries:
            if link.is_symlink() and not link.exists():
                link.unlink(missing_ok=True)
    except OSError:
        pass  # another process prunes too
