"""The PV console as a test sees it: expect and send."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from xenpy.api.errors import Timeout
from xenpy.api.transcript import Transcript

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.api.progress import Progress

_RETRY_S: Final = 0.01


class Console(Transcript):
    """A console: its output since the first byte, and its input.

    `write` takes input and returns how many bytes of it were taken.
    """

    def __init__(self, progress: Progress, write: Callable[[bytes], int]) -> None:
        super().__init__(progress)
        self._write = write

    def send(self, data: str | bytes, timeout: float | None = None) -> None:
        """Type something. Raises GuestEnded, and Timeout if the guest does not take its input for so long."""
        rest = data.encode() if isinstance(data, str) else data
        progress = self.progress
        timeout = progress.timeout_s if timeout is None else timeout
        deadline = time.monotonic() + timeout
        while rest:
            if progress.ending is not None:
                raise progress.ended("and takes no input any more")
            rest = rest[self._write(rest) :]
            if rest:
                if time.monotonic() >= deadline:
                    raise Timeout(f"{progress.name}: has not taken its input within {timeout:g} s")
                time.sleep(_RETRY_S)

    def sendline(self, line: str | bytes = "", timeout: float | None = None) -> None:
        """Type a line and Enter. Raises as `send`."""
        self.send((line.encode() if isinstance(line, str) else line) + b"\n", timeout)
