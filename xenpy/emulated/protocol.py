"""What the outer side and the agent say to each other, without the saying: requests, command texts and the end of a stream."""

from __future__ import annotations

import math
import os
import secrets
import shlex
import shutil
import time
from typing import TYPE_CHECKING

from xenpy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from xenpy.emulated.machine import Share

READY = "ready"
DONE = "done"
INPUT_FILE = "/run/xenpy/input"
NO_INPUT = "/dev/null"
SHARED_WITH = "trans=virtio,version=9p2000.L,cache=none"
"""Mount options of a writable share: nothing is cached, so that both sides see each other's changes."""

ENVIRONMENT = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "COLORTERM", "COLUMNS", "LINES", "LANG", "LANGUAGE", "TZ"),
    *("VIRTUAL_ENV", "CI", "NO_COLOR", "FORCE_COLOR", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"),
)
ENVIRONMENT_PREFIXES = ("XENPY_", "PYTHON", "PYTEST_", "HYPOTHESIS_", "LC_")
INSIDE = "XENPY_EMULATED"
"""Set to 1 for a command that runs in the emulated host."""


def default_environment() -> dict[str, str]:
    """Return what of this process's environment makes sense in the emulated host: no agents, buses or displays."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in ENVIRONMENT or name.startswith(ENVIRONMENT_PREFIXES)
    }


def command_text(argv: Sequence[str], env: Mapping[str, str], cwd: Path) -> bytes:
    """Return the shell text that becomes `argv` in directory `cwd` with exactly the environment `env`.

    A program without a slash is looked up here, in `env`'s PATH: the file system is the same, and the agent's busybox would
    prefer its own programs.  Raises ConfigError if there is none.
    """
    if not argv:
        raise ConfigError("no command given for the emulated host")
    program = argv[0]
    if "/" not in program:
        found = shutil.which(program, path=env.get("PATH", os.defpath))
        if found is None:
            raise ConfigError(f"{program}: not found in PATH")
        program = found
    words = ["exec", "env", "-i", *(f"{name}={value}" for name, value in {**env, INSIDE: "1"}.items())]
    text = f"cd {shlex.quote(str(cwd))} || exit 126\n{shlex.join([*words, program, *argv[1:]])}\n"
    if "\0" in text:
        raise ConfigError("a command, its environment and its directory cannot contain NUL")
    return os.fsencode(text)


def setup_text(shares: Sequence[Share]) -> bytes:
    """Return the shell text that sets the clock, to which outer files' times relate, and mounts the writable `shares`."""
    lines = ["set -e", f"date -s @{math.ceil(time.time())} >/dev/null"]
    for share in shares:
        if share.writable:
            place = shlex.quote(str(share.path))
            lines.append(f"mkdir -p {place}; mount -t 9p -o {SHARED_WITH} {share.tag} {place}")
    return os.fsencode("\n".join(lines) + "\n")


def request(verb: str, *words: object, body: bytes | None = None) -> bytes:
    """Return a request to the agent, `body` and its size included where the verb takes one."""
    size = () if body is None else (len(body),)
    return " ".join(str(word) for word in (verb, *size, *words)).encode() + b"\n" + (body or b"")


def new_mark() -> bytes:
    """Return what no program writes by chance; printable but for its first byte, as it goes through shell and terminal."""
    return b"\x1e" + secrets.token_hex(12).encode()


class MarkedStream:
    """Passes on a channel's bytes until the mark by which the agent ends them, which is not part of them.

    The mark is what tells that all has arrived: the report that a command is done travels by another channel, and may overtake.
    """

    def __init__(self, mark: bytes, sink: Callable[[bytes], None]) -> None:
        self._mark = mark
        self._sink = sink
        self._held = b""
        self.ended = False

    def feed(self, data: bytes) -> None:
        """Take what the channel brought."""
        data = self._held + data
        position = data.find(self._mark)
        if position >= 0:
            self.ended = True
            self._held, data = b"", data[:position]
        else:
            held = self._possible_mark(data)
            self._held, data = data[len(data) - held :], data[: len(data) - held]
        if data:
            self._sink(data)

    def _possible_mark(self, data: bytes) -> int:
        """Return how many bytes at the end of `data` may turn out to begin the mark."""
        for length in range(min(len(self._mark) - 1, len(data)), 0, -1):
            if data.endswith(self._mark[:length]):
                return length
        return 0
