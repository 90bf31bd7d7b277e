"""Archives of the kernel's initramfs format, written reproducibly and without root.

Ref: Linux Documentation/driver-api/early-userspace/buffer-format.rst, the `newc` variant
"""

from __future__ import annotations

import stat
from pathlib import PurePosixPath

MAGIC = b"070701"
TRAILER = "TRAILER!!!"
ALIGNMENT = 4
"""Header plus name, and the data, are each padded to this many bytes."""
MAX_FILE_SIZE = 0xFFFFFFFF
"""Sizes are eight hexadecimal digits."""


def _aligned(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNMENT)


class Archive:
    """An archive under construction; equal calls give equal bytes: owner root, time 0, inodes counted from 1.

    Paths may be absolute or relative; parent directories are added as needed.  A path may be added once (ValueError).
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._seen: set[PurePosixPath] = set()

    def directory(self, path: str, *, mode: int = 0o755) -> None:
        """Add a directory, or nothing if it is there already."""
        if self._normal(path) not in self._seen:
            self._add(path, stat.S_IFDIR | mode)

    def file(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """Add a regular file of at most `MAX_FILE_SIZE` bytes."""
        self._add(path, stat.S_IFREG | mode, data)

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, path: str, major: int, minor: int, *, mode: int = 0o600) -> None:
        """Add a character device node."""
        self._add(path, stat.S_IFCHR | mode, device=(major, minor))

    def to_bytes(self) -> bytes:
        """Return the whole archive, trailer included."""
        return b"".join((*self._parts, self._record(TRAILER, inode=0, mode=0)))

    @staticmethod
    def _normal(path: str) -> PurePosixPath:
        pure = PurePosixPath("/", path).relative_to("/")
        if ".." in pure.parts or "\0" in path:
            raise ValueError(f"{path!r}: not a path inside the archive")
        return pure

    def _add(self, path: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        pure = self._normal(path)
        if len(data) > MAX_FILE_SIZE:
            raise ValueError(f"{path}: {len(data)} bytes do not fit the format's {MAX_FILE_SIZE}")
        for parent in reversed(pure.parents[:-1]):  # the last one is the root itself
            self.directory(str(parent))
        if not pure.parts or pure in self._seen:
            raise ValueError(f"{path!r}: already in the archive")
        self._seen.add(pure)
        self._parts.append(self._record(str(pure), len(self._seen), mode, data, device))

    @staticmethod
    def _record(name: str, inode: int, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
        encoded = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        owner = group = mtime = holder_major = holder_minor = checksum = 0
        fields = (
            inode,
            mode,
            owner,
            group,
            links,
            mtime,
            len(data),
            holder_major,
            holder_minor,
            *device,
            len(encoded),
            checksum,
        )
        return _aligned(MAGIC + b"".join(b"%08x" % field for field in fields) + encoded) + _aligned(data)
