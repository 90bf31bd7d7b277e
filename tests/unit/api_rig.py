"""What tests of the API need: test kernels, and a console whose other end is a real shell on a pseudo-terminal."""

from __future__ import annotations

import atexit
import functools
import os
import pty
import shutil
import signal
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import xenpy
from tests.guest import build
from xenpy.api.console import Console
from xenpy.api.progress import Progress
from xenpy.domain.ending import End, Ending

if TYPE_CHECKING:
    from collections.abc import Iterator


TIMEOUT = 60
_LOOP = b"\xf3\x90\xeb\xfc"  # pause; jump to the pause


@functools.cache
def _builder() -> build.Builder:
    directory = tempfile.mkdtemp(prefix="xenpy-kernels-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return build.Builder(Path(directory))


def kernel(name: str) -> Path:
    """Return a test kernel, or skip the test where none can be built."""
    if reason := build.missing():
        pytest.skip(reason)
    return _builder().build(name)


@contextmanager
def talking() -> Iterator[xenpy.Guest]:
    """Run a guest that echoes lines in brackets until one says bye."""
    with xenpy.Guest.from_kernel(kernel("console"), memory=32, timeout=TIMEOUT) as guest:
        guest.emergency.expect("listening")
        yield guest


@contextmanager
def spinning() -> Iterator[xenpy.Guest]:
    """Run a guest that does nothing but run."""
    with xenpy.Guest.from_kernel(kernel("ending"), memory=32, cmdline="spin", timeout=TIMEOUT) as guest:
        guest.emergency.expect("ending: spin")
        guest.wait_for(lambda: guest.read_memory(4, gva=guest.registers().rip) in _LOOP * 2, what="loop")
        yield guest


def make_console(timeout: float = 60.0) -> tuple[Console, list[bytes]]:
    """Return a console without a guest, and the list of what is typed into it."""
    typed: list[bytes] = []

    def write(data: bytes) -> int:
        typed.append(data)
        return len(data)

    return Console(Progress("nobody", timeout_s=timeout), write), typed


@contextmanager
def shell_console(*argv: str) -> Iterator[Console]:
    """Run a program on a pseudo-terminal and give a console that is its terminal's other end."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(TERM="vt100", PS1="$ ", HOME="/nonexistent")
        os.execvp(argv[0], argv)
    console = Console(Progress(argv[0], timeout_s=20), lambda data: os.write(terminal, data))

    def read() -> None:
        while True:
            try:
                data = os.read(terminal, 4096)
            except OSError:
                data = b""
            if not data:
                console.progress.end(Ending(End.POWEROFF))
                return
            console.feed(data)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield console
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        reader.join()
        os.close(terminal)
