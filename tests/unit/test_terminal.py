"""The user's end of a console, where it is a pipe or a file."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from xenpy.loop import Loop
from xenpy.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def lost_by(loop: Loop, stdout: int, data: bytes) -> list[int | None]:
    """Return the errors by which a terminal found that its stdout is lost."""
    errors: list[int | None] = []
    terminal = Terminal(loop, lambda: None, lambda error: errors.append(error.errno), stdout=stdout)
    assert terminal.sink(data) == len(data)
    assert terminal.sink(data) == len(data), "the guest must not wait for what nobody reads"
    loop.call_soon(loop.stop)
    loop.run()
    return errors


def test_what_a_pipe_takes_arrives(loop: Loop) -> None:
    reader, writer = os.pipe()
    assert lost_by(loop, writer, b"some") == []
    assert os.read(reader, 100) == b"somesome"
    os.close(reader)
    os.close(writer)


def test_a_reader_that_has_gone_is_noticed_once(loop: Loop) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    assert lost_by(loop, writer, b"some") == [errno.EPIPE]
    os.close(writer)


def test_a_full_disk_is_noticed(loop: Loop) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    assert lost_by(loop, full, b"some") == [errno.ENOSPC]
    os.close(full)


def test_a_pipe_that_is_full_makes_the_guest_wait(loop: Loop) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    terminal = Terminal(loop, lambda: None, lambda _error: None, stdout=writer)
    data = bytes(1 << 20)
    taken = terminal.sink(data)
    assert 0 < taken < len(data)
    os.close(reader)
    os.close(writer)
