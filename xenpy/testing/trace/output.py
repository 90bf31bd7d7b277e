"""Where lines of a trace go: a file, or stderr beside the guest's console."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

from xenpy.errors import ConfigError

if TYPE_CHECKING:
    import os

_FLUSH_NS: Final = 200_000_000
"""Lines wait for no longer than until the next one that comes so much later."""


class Output:
    """Takes lines for `path`, or stderr if that is None. Raises ConfigError if the file cannot be written."""

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._file = sys.stderr if path is None else open_file(path)
        self._owned = path is not None
        self._is_terminal = self._file.isatty()
        self._flushed_ns = 0

    def write(self, line: str) -> None:
        """Write a line. Raises OSError."""
        # The guest's console may have a terminal in raw mode, and the cursor anywhere.
        self._file.write(f"\r{line}\r\n" if self._is_terminal else f"{line}\n")
        now = time.monotonic_ns()
        if self._is_terminal or now - self._flushed_ns > _FLUSH_NS:
            self._file.flush()
            self._flushed_ns = now

    def close(self) -> None:
        """Write what is left, and close a file. Raises OSError."""
        self._file.flush()
        if self._owned:
            self._file.close()


def open_file(path: str | os.PathLike[str]) -> IO[str]:
    """Open a file to write text to. Raises ConfigError if that cannot be."""
    try:
        return Path(path).open("w", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
