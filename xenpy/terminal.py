"""The user's end of a guest's console: stdin and stdout, raw where they are a terminal."""

from __future__ import annotations

import errno
import os
import select
import sys
from typing import TYPE_CHECKING, Any, Final, Self

from xenpy import log
from xenpy.loop import READ, WRITE

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from xenpy.devices.console import ConsoleRing
    from xenpy.loop import Loop

ESCAPE: Final = 0x1D
"""Ctrl-], as for telnet and xl console."""
_CHUNK: Final = 2048
"""Never more than a pipe that is ready is sure to take (PIPE_BUF is 4096)."""
_RETRY_S: Final = 0.02


class Terminal:
    """Joins stdin and stdout to a console ring; as a context manager it always restores the terminal.

    `on_escape` is called when the user types Ctrl-] on a terminal, `on_lost` when stdout can no longer be written: both in the loop's
    thread. A stdout that was closed from the start is not lost.
    """

    def __init__(
        self,
        loop: Loop,
        on_escape: Callable[[], None],
        on_lost: Callable[[OSError], None],
        *,
        stdin: int = 0,
        stdout: int = 1,
    ) -> None:
        self._loop = loop
        self._on_escape = on_escape
        self._on_lost = on_lost
        self._in, self._out = stdin, stdout
        self._console: ConsoleRing | None = None
        self._saved: list[Any] | None = None
        self._waiting = False
        self._reading = False
        self._dead = False
        self._poll = select.poll()
        self._poll.register(stdout, select.POLLOUT)

    def __enter__(self) -> Self:
        if os.isatty(self._in) and os.isatty(self._out):
            import termios
            import tty

            self._saved = termios.tcgetattr(self._in)
            tty.setraw(self._in, termios.TCSADRAIN)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()

    @property
    def is_raw(self) -> bool:
        """Tell whether the terminal is in raw mode, so that Ctrl-C goes to the guest."""
        return self._saved is not None

    def restore(self) -> None:
        """Put the terminal back as it was; idempotent."""
        self._watch_input(on=False)
        if self._saved is not None:
            import termios

            termios.tcsetattr(self._in, termios.TCSADRAIN, self._saved)
            self._saved = None

    # -- output -------------------------------------------------------------------------------------------------------

    def sink(self, data: bytes) -> int:
        """Write what stdout takes without blocking; return how much. Under the host's lock, from any thread."""
        if self._dead:
            return len(data)  # nobody reads any more: the guest must not wait for that
        done = 0
        while done < len(data) and self._poll.poll(0):
            try:
                done += os.write(self._out, data[done : done + _CHUNK])
            except BlockingIOError:
                break
            except OSError as error:
                self._lose(error)
                return len(data)
        if done < len(data) and not self._waiting:
            self._waiting = True
            self._loop.call_soon(self._await_room)
        return done

    def _await_room(self) -> None:
        try:
            self._loop.watch(self._out, WRITE, self._on_room)
        except OSError:
            self._loop.call_later(_RETRY_S, self._on_room)  # a file that epoll does not know

    def _on_room(self) -> None:
        self._loop.watch(self._out, WRITE, None)
        self._waiting = False
        if self._console is not None:
            self._console.on_event()

    def _lose(self, error: OSError) -> None:
        self._dead = True
        if error.errno != errno.EBADF:
            self._loop.call_soon(lambda: self._on_lost(error))

    def write_all(self, data: bytes) -> None:
        """Write to stdout, waiting as long as it takes."""
        try:
            while data and not self._dead:
                data = data[os.write(self._out, data) :]
        except OSError as error:
            self._lose(error)

    # -- input --------------------------------------------------------------------------------------------------------

    def attach(self, console: ConsoleRing | None) -> None:
        """Join the terminal to a console, or to none. In the loop's thread."""
        self._console = console
        self._watch_input(on=console is not None)

    def _watch_input(self, *, on: bool) -> None:
        if on == self._reading:
            return
        self._reading = on
        try:
            self._loop.watch(self._in, READ, self._on_input if on else None)
        except PermissionError:
            self._loop.call_soon(self._on_input)  # a regular file is always readable, says epoll by refusing it
        except OSError:
            self._reading = False  # no stdin at all

    def _on_input(self) -> None:
        console = self._console
        if console is None or not self._reading:
            return
        if console.room < _CHUNK:
            self._watch_input(on=False)
            self._loop.call_later(_RETRY_S, lambda: self._watch_input(on=self._console is not None))
            return
        try:
            data = os.read(self._in, _CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            log.debug(f"stdin: {error.strerror}")
            data = b""
        if not data:
            self._watch_input(on=False)
            return
        if self.is_raw and ESCAPE in data:
            data = data[: data.index(ESCAPE)]
            self._on_escape()
        if data:
            console.send_input(data)
        if not os.isatty(self._in):
            import stat

            if stat.S_ISREG(os.fstat(self._in).st_mode):
                self._loop.call_soon(self._on_input)


def prompt_line(text: str) -> None:
    """Write a line to stderr that stays readable whatever column the guest left the cursor in."""
    lead = "\r\n" if sys.stderr.isatty() else ""
    sys.stderr.write(f"{lead}xenpy: {text}\r\n" if lead else f"xenpy: {text}\n")
    sys.stderr.flush()
