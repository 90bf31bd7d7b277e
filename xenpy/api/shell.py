r"""Commands in a guest, by a shell on its console: no agent, only a POSIX sh with `printf`.

A command is put into a variable of the shell, in short lines of printable ASCII, whatever the terminal and the shell's line editor are
like; so its own quoting cannot break ours. Random marks frame its output. They are typed in two halves, so that their echo is not
taken for them; and nothing is typed while a command runs, so that its output has no echo in it.
"""

from __future__ import annotations

import os
import re
import threading
import time
from typing import TYPE_CHECKING, Final

from xenpy.api.errors import Timeout
from xenpy.errors import ConfigError

if TYPE_CHECKING:
    from subprocess import CompletedProcess

    from xenpy.api.console import Console
    from xenpy.api.transcript import Match

MAX_COMMAND: Final = 256 << 10
"""Bytes; longer input is not a command but a file."""
_PIECE: Final = 200
"""Bytes a line, each of which may take four characters; line editors take 1000 at least, terminals 4095."""
_LINES_AHEAD: Final = 8
"""So many lines are typed before the shell must have read them: a terminal drops what it cannot hold."""
_FIRST_INTERVAL_S: Final = 1.0
_SHOWN: Final = 60
_INTERRUPT: Final = "\x03"
_QUOTABLE: Final = frozenset(range(0x20, 0x7F)) - frozenset(b"'")
_PLAIN: Final = _QUOTABLE - frozenset(b"\\%")


class Shell:
    """The shell that somebody has started on `console`, or that init will start there."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self.ready = False
        """Whether the shell is known to read what is typed."""
        self._lock = threading.Lock()

    def run(self, command: str, timeout: float) -> CompletedProcess[str]:
        """Run a command in a subshell, with no input, and return its exit code and output, stderr included.

        Kernel messages that come meanwhile are part of the output. Raises ConfigError for a command that cannot be typed, Timeout,
        after which the command is interrupted, and GuestEnded.
        """
        from subprocess import CompletedProcess

        lines = _typed(command)
        deadline = time.monotonic() + timeout
        shown = repr(command if len(command) <= _SHOWN else f"{command[:_SHOWN]}...")
        with self._lock:
            if not self.ready:
                self._synchronize(timeout)
            try:
                for number in range(0, len(lines), _LINES_AHEAD):
                    read = _Mark()
                    self._type(*lines[number : number + _LINES_AHEAD], read.say)
                    self._await(read.said, deadline, "shell that reads on")
                begin, end = _Mark(), _Mark()
                self._type(f'{begin.say}; (eval "$_xenpy") </dev/null; {end.say_status}')
                self._await(begin.said, deadline, f"start of {shown}")
                found = self._await(end.said_status, deadline, f"end of {shown}")
            except Timeout:
                self.ready = False
                self._console.send(_INTERRUPT)
                raise
        return CompletedProcess(command, int(found[1]), found.before.replace("\r\n", "\n"))

    def _synchronize(self, timeout: float) -> None:
        """Wait until a shell reads what is typed; type again from time to time, it may start late."""
        marks: list[re.Pattern[bytes]] = []
        interval = _FIRST_INTERVAL_S
        next_try = 0.0

        def look() -> Match | None:
            nonlocal interval, next_try
            if time.monotonic() >= next_try:
                mark = _Mark()
                marks.append(mark.said)
                self._type("", mark.say)
                next_try = time.monotonic() + interval
                interval *= 2
            return self._console.search(marks)

        self._console.progress.wait(look, timeout, "shell on the console", poll_s=_FIRST_INTERVAL_S)
        self.ready = True

    def _type(self, *lines: str) -> None:
        for line in lines:
            self._console.sendline(f" {line}")  # most shells keep a line that starts with a blank out of their history

    def _await(self, pattern: re.Pattern[bytes], deadline: float, what: str) -> Match:
        return self._console.find([pattern], max(0.0, deadline - time.monotonic()), what)


class _Mark:
    """A random word, and the shell's commands that print it on a line, alone or with the last exit code."""

    def __init__(self) -> None:
        word = os.urandom(8).hex()
        halves = f"{word[:8]} {word[8:]}"
        self.say = f"printf '%s%s\\n' {halves}"
        self.say_status = f"printf '%s%s %d\\n' {halves} $?"
        self.said = re.compile(word.encode() + rb"\r?\n")
        self.said_status = re.compile(word.encode() + rb" (\d+)\r?\n")


def _typed(command: str) -> list[str]:
    """Return the lines that put a command into the shell's variable `_xenpy`. Raises ConfigError."""
    data = command.encode("utf-8", "surrogateescape")
    if b"\0" in data or len(data) > MAX_COMMAND:
        raise ConfigError(f"a command is at most {MAX_COMMAND} bytes without NUL; this one has {len(data)}")
    return ["_xenpy=", *(_append(data[start : start + _PIECE]) for start in range(0, len(data), _PIECE))]


def _append(piece: bytes) -> str:
    """Return the line that appends a piece to the variable; only one with special characters costs the guest a process."""
    if _QUOTABLE.issuperset(piece):
        return f"""_xenpy="$_xenpy"'{piece.decode()}'"""
    escaped = "".join(chr(byte) if byte in _PLAIN else f"\\{byte:03o}" for byte in piece)
    # The full stop keeps $(...) from dropping line ends.
    return f"""_xenpy="$_xenpy$(printf '{escaped}.')"; _xenpy="${{_xenpy%.}}\""""
