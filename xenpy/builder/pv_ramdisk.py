"""A ramdisk whose size is known before there is guest memory to read it into."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final, Self

from xenpy.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

_RIGHT: Final = "an initramfs (cpio archive) would be right"
_CLOSED: Final = -1


class Ramdisk:
    """An initrd, from a file or from memory, or none, of size 0; use as a context manager. `size` is in bytes, `name` for errors.

    Raises ConfigError if one that is named is empty or cannot be read.
    """

    def __init__(self, source: Path | bytes | None) -> None:
        self._fd = _CLOSED
        self._data = b""
        if source is None or isinstance(source, bytes):
            self.name, self._data = "ramdisk", source or b""
            self.size = len(self._data)
            if source is not None and not source:
                raise ConfigError(f"ramdisk: empty; {_RIGHT}")
            return
        self.name = str(source)
        try:
            # Without O_NONBLOCK a FIFO would keep us waiting for its writer.
            self._fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise ConfigError(f"{source}: cannot read the ramdisk: {error.strerror}") from error
        status = os.fstat(self._fd)
        self.size = status.st_size
        if not stat.S_ISREG(status.st_mode) or not self.size:
            self.close()
            raise ConfigError(f"{source}: empty or not a regular file; {_RIGHT}")

    def copy(self, target: memoryview) -> None:
        """Read all of it into a view of its size. Raises ConfigError."""
        if self._fd == _CLOSED:
            target[:] = self._data
            return
        done = 0
        try:
            while done < self.size:
                count = os.preadv(self._fd, [target[done:]], done)
                if not count:
                    raise ConfigError(f"{self.name}: changed while it was being read")
                done += count
        except OSError as error:
            raise ConfigError(f"{self.name}: cannot read the ramdisk: {error.strerror}") from error

    def close(self) -> None:
        """Close the file."""
        if self._fd != _CLOSED:
            os.close(self._fd)
            self._fd = _CLOSED

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
