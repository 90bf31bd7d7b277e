"""A guest's output, kept since its first byte, and searching in it."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from xenpy.api.errors import GuestEnded
from xenpy.codec import plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from xenpy.api.progress import Progress


class Eof(Enum):
    """The end of a guest's output, as something to expect."""

    EOF = "end of output"


EOF: Final = Eof.EOF

Pattern = str | bytes | re.Pattern[str] | re.Pattern[bytes] | Eof
"""A regular expression, in which `^` and `$` match at lines unless it comes compiled, or EOF."""

LIMIT: Final = 16 << 20
"""Bytes that are kept; a guest that writes more loses the oldest."""
TAIL_LINES: Final = 20
_TAIL_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Match:
    """What `expect` found.

    `index` is the place of the pattern in the list that was given, `text` what it matched, `before` all that came between the
    previous match and this one. `match[1]` and `match["name"]` are its groups, empty if they took no part.
    """

    index: int
    before: str
    text: str
    groups: Mapping[int | str, str]

    def __getitem__(self, group: int | str) -> str:
        return self.text if group == 0 else self.groups[group]


def decode(data: bytes | bytearray) -> str:
    """Return a guest's bytes as text; what is not UTF-8 shows as backslash escapes."""
    return data.decode("utf-8", "backslashreplace")


def _compile(pattern: Pattern) -> re.Pattern[bytes] | None:
    if isinstance(pattern, Eof):
        return None
    if isinstance(pattern, re.Pattern):
        if isinstance(pattern.pattern, bytes):
            return re.compile(pattern.pattern, pattern.flags)
        return re.compile(pattern.pattern.encode(), pattern.flags & ~re.UNICODE)
    return re.compile(pattern.encode() if isinstance(pattern, str) else pattern, re.MULTILINE)


def _shown(patterns: Sequence[Pattern]) -> str:
    texts = [pattern.pattern if isinstance(pattern, re.Pattern) else pattern for pattern in patterns]
    return " or ".join(text.value if isinstance(text, Eof) else repr(text) for text in texts)


@plain
@dataclass(frozen=True, slots=True)
class Written:
    """A transcript as plain data: what is kept, how many bytes before it are not, and where the next `expect` begins."""

    data: bytes
    dropped: int
    position: int


class Transcript:
    """All that a guest has written in one place, since its first byte.

    `position` is where the next `expect` begins, in bytes from the start; it may be set, to search again.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self._lock = threading.Lock()
        self._data = bytearray()
        self.dropped = 0
        """Bytes at the start that are not kept any more."""
        self.position = 0

    def feed(self, data: bytes) -> int:
        """Take output of the guest; return how much of it was taken, which is all."""
        with self._lock:
            self._data += data
            excess = len(self._data) - LIMIT
            if excess > 0:
                del self._data[:excess]
                self.dropped += excess
        self.progress.notify()
        return len(data)

    def written(self) -> Written:
        """Return all of it as plain data."""
        with self._lock:
            return Written(bytes(self._data), self.dropped, self.position)

    def load(self, written: Written) -> None:
        """Begin with what another guest has written."""
        with self._lock:
            self._data[:] = written.data
            self.dropped, self.position = written.dropped, written.position

    @property
    def data(self) -> bytes:
        """Return all output so far, as it was written."""
        with self._lock:
            return bytes(self._data)

    def read(self, since: int = 0) -> str:
        """Return the output so far as text, from byte `since` on."""
        with self._lock:
            return decode(self._data[max(0, since - self.dropped) :])

    @property
    def text(self) -> str:
        """Return all output so far as text."""
        return self.read()

    def tail(self, lines: int = TAIL_LINES, size: int = _TAIL_BYTES) -> str:
        """Return the last lines, at most `size` bytes, without what a terminal would act on."""
        with self._lock:
            data = self._data[-size:]
        text = decode(data).replace("\r\n", "\n").strip("\n")
        return "\n".join("".join(map(_printable, line)) for line in text.split("\n")[-lines:]) if text else ""

    def expect(self, pattern: Pattern | Sequence[Pattern], timeout: float | None = None) -> Match:
        """Wait until a pattern matches output behind the previous match, and move behind that match; `timeout` in seconds.

        Of a list the match that begins first wins. Patterns match bytes: a string is encoded as UTF-8 first. Raises Timeout,
        and GuestEnded if the guest ended without, unless EOF is among the patterns.
        """
        patterns = [pattern] if isinstance(pattern, str | bytes | re.Pattern | Eof) else list(pattern)
        return self.find(patterns, timeout, f"output like {_shown(patterns)}")

    def find(self, patterns: Sequence[Pattern], timeout: float | None, what: str) -> Match:
        """Do as `expect` does; `what` is waited for, in the words of an error message."""
        compiled = [_compile(pattern) for pattern in patterns]
        try:
            return self.progress.wait(lambda: self.search(compiled), timeout, what)
        except GuestEnded:
            if EOF not in patterns:
                raise
        with self._lock:
            before = decode(self._data[max(0, self.position - self.dropped) :])
            self.position = self.dropped + len(self._data)
        return Match(list(patterns).index(EOF), before, "", {})

    def search(self, patterns: Sequence[re.Pattern[bytes] | None]) -> Match | None:
        """Return the first match there is already and move behind it; None if there is none."""
        with self._lock:
            start = max(0, self.position - self.dropped)
            best: tuple[int, re.Match[bytes]] | None = None
            for index, pattern in enumerate(patterns):
                found = pattern.search(self._data, start) if pattern is not None else None
                if found is not None and (best is None or found.start() < best[1].start()):
                    best = index, found
            if best is None:
                return None
            index, found = best
            groups: dict[int | str, str] = {
                number: decode(group or b"") for number, group in enumerate(found.groups(), 1)
            }
            groups.update({name: decode(group or b"") for name, group in found.groupdict().items()})
            self.position = self.dropped + found.end()
            return Match(index, decode(self._data[start : found.start()]), decode(found[0]), groups)


def _printable(char: str) -> str:
    return char if char.isprintable() or char == "\t" else repr(char)[1:-1]
