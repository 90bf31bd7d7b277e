"""Running a program and noting when each byte of its output came, on the observer's clock."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_READ = 1 << 16


class BenchError(Exception):
    """A measurement could not be made; the message says why."""


@dataclass
class Watched:
    """What a program did: seconds on the monotonic clock, and its output (both streams in one)."""

    started: float
    ended: float = 0.0
    code: int = 0
    output: bytearray = field(default_factory=bytearray)
    times: list[tuple[int, float, float]] = field(default_factory=list)
    """(bytes of output so far, when, seconds of processor time used by then)"""

    def at(self, text: bytes) -> tuple[float, float]:
        """Return when `text` had come in full, and the processor time used by then. Raises BenchError if it never came."""
        index = self.output.find(text)
        if index < 0:
            tail = self.output.decode(errors="replace")[-2000:]
            raise BenchError(f"no {text!r} in the output:\n{tail}")
        return next((when, used) for length, when, used in self.times if length >= index + len(text))


def xenpy_command(*args: str) -> list[str]:
    """Return the command line of this checkout's xenpy."""
    return [sys.executable, "-m", "xenpy", *args]


def environment() -> dict[str, str]:
    """Return this environment, with byte code cached: no user has it off."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}


def processor_time(pid: int) -> float:
    """Return the processor time that a process has used, in seconds. Ref: clock_getcpuclockid(3), whose encoding this is"""
    return time.clock_gettime((~pid << 3) | 2)


def watch(argv: Sequence[str], *, timeout: float) -> Watched:
    """Run `argv` to its end. Raises BenchError if it fails or takes longer than `timeout` seconds."""
    started = time.monotonic()
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment()
    )
    seen = Watched(started)
    assert process.stdout is not None
    try:
        _read_all(process, process.stdout.fileno(), seen, started + timeout)
    finally:
        process.kill()
        seen.code = process.wait()
        process.stdout.close()
    if seen.code:
        raise BenchError(f"{' '.join(argv)} ended with {seen.code}:\n{seen.output.decode(errors='replace')[-2000:]}")
    return seen


def _read_all(process: subprocess.Popen[bytes], fd: int, seen: Watched, deadline: float) -> None:
    import select

    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while True:
        if not poll.poll(max(0, (deadline - time.monotonic()) * 1000)):
            raise BenchError(f"{process.args!r} takes too long:\n{seen.output.decode(errors='replace')[-2000:]}")
        when, used = time.monotonic(), processor_time(process.pid)
        data = os.read(fd, _READ)
        if not data:
            break
        seen.output += data
        seen.times.append((len(seen.output), when, used))
    process.wait(max(0.1, deadline - time.monotonic()))
    seen.ended = time.monotonic()
