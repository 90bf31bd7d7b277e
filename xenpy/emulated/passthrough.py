"""One command in an emulated host, with this process's terminal, pipes and exit code as its own."""

from __future__ import annotations

import os
import select
import selectors
import signal
import socket
import termios
import threading
import tty
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from xenpy.emulated.machine import Channel
from xenpy.emulated.protocol import command_text, default_environment, request
from xenpy.emulated.session import BOOT_TIMEOUT, EmulatedHost
from xenpy.signals import handled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import FrameType

    from xenpy.emulated.connection import Connection
    from xenpy.signals import Wake

STDIN, STDOUT, STDERR = range(3)
READ_SIZE = 4096
SIGNALLED = 128
"""Added to a signal's number for the exit code of what it ended, as shells do."""
ESCAPE = 0x1D
"""Ctrl-]."""
ESCAPES = 3
"""How many of them in a row end the host; one is for the guest console that the command may be showing."""
NOTICE = b"starting the emulated host ..."
ERASE_LINE = b"\r\x1b[K"


class EndedError(Exception):
    """Something other than the command's own exit ends it; carries the signal that would say the same."""

    def __init__(self, signum: signal.Signals) -> None:
        super().__init__(signum)
        self.signum = signum


def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    memory: int = 3072,
    cpus: int = 1,
    writable: Sequence[Path] = (),
    boot_timeout: float = BOOT_TIMEOUT,
) -> int:
    """Boot an emulated host, run `argv` in it and return its exit code, 128 plus the signal if one ended it.

    Its standard files are this process's, each byte for byte unless it is a terminal; then the command has a terminal of the
    same size, and this one is raw while the command runs.  Ctrl-C is the command's as soon as it runs, until then it ends
    the boot; three Ctrl-] end the host whatever the command does.  `env` is the whole environment, by default
    `default_environment()`; `memory` is in MiB; below the directories `writable` what the command writes is kept.

    Raises HostError if QEMU or a package is missing or the emulated host dies, ConfigError if there is no such program.
    """
    _open_standard_files()
    text = command_text(argv, default_environment() if env is None else env, cwd or Path.cwd())
    host = EmulatedHost(memory=memory, cpus=cpus, writable=writable, boot_timeout=boot_timeout)
    try:
        with _ending_signals() as wake, _notice() as end_notice, host:
            end_notice()
            if wake is not None:
                host.connection.watch(wake.fileno(), wake.drained)
            return _attached(host, text)
    except KeyboardInterrupt:
        return SIGNALLED + signal.SIGINT
    except EndedError as ended:
        return SIGNALLED + ended.signum


def _open_standard_files() -> None:
    """Give whichever standard file is closed something to be, so that no socket takes its number."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        pass
    os.close(descriptor)


def _attached(host: EmulatedHost, text: bytes) -> int:
    """Run the command with this process's standard files and return its exit code."""
    connection = host.connection
    interactive = os.isatty(STDIN)
    terminals = [descriptor for descriptor in (STDOUT, STDERR, STDIN) if os.isatty(descriptor)]
    source = Channel.TERMINAL if interactive else Channel.STDIN
    stdout = Channel.TERMINAL if os.isatty(STDOUT) else Channel.STDOUT
    stderr = Channel.TERMINAL if os.isatty(STDERR) else Channel.STDERR
    descriptors = {
        Channel.STDOUT: STDOUT,
        Channel.STDERR: STDERR,
        **({Channel.TERMINAL: terminals[0]} if terminals else {}),
    }
    with _Input(connection, host.machine.channels[source], escapes=interactive), _window_size(connection, terminals):
        sinks = {channel: _writer(descriptors[channel]) for channel in (stdout, stderr)}
        with _raw(STDIN) if interactive else _unchanged():
            command = host.begin(text, source.device, sinks)
            if terminals:  # its echo, where neither output goes there
                connection.sinks.setdefault(Channel.TERMINAL, _writer(terminals[0]))
            status = command.finish(timeout=None)
    return 0 if status is None else status


def _writer(descriptor: int) -> Callable[[bytes], None]:
    def write(data: bytes) -> None:
        while data:
            try:
                data = data[os.write(descriptor, data) :]
            except BlockingIOError:  # whoever shares the open file has made it so
                select.select([], [descriptor], [])
            except BrokenPipeError:
                raise EndedError(signal.SIGPIPE) from None

    return write


class _Input:
    """Carries standard input into a channel, no faster than it is taken; a context manager."""

    def __init__(self, connection: Connection, channel: socket.socket, *, escapes: bool) -> None:
        self._connection = connection
        self._end = channel.dup()  # a descriptor of its own: the terminal's is being watched for output already
        self._escapes = escapes
        self._escapes_seen = 0
        self._pending = b""
        self._watched: int | None = None

    def __enter__(self) -> None:
        self._watch(STDIN, self._read)

    def __exit__(self, *_: object) -> None:
        self._unwatch()
        self._end.close()

    def _watch(self, descriptor: int, handler: Callable[[], None], *, events: int = selectors.EVENT_READ) -> None:
        self._unwatch()
        self._connection.watch(descriptor, handler, events=events)
        self._watched = descriptor

    def _unwatch(self) -> None:
        if self._watched is not None:
            self._connection.unwatch(self._watched)
            self._watched = None

    def _read(self) -> None:
        try:
            data = os.read(STDIN, READ_SIZE)
        except BlockingIOError:
            return
        except OSError:  # closed from the start, or the terminal has hung up
            data = b""
        if self._escapes:
            self._look_for_escape(data)
        if data:
            self._pending = data
            self._watch(self._end.fileno(), self._write, events=selectors.EVENT_WRITE)
        else:
            self._unwatch()
            self._end.shutdown(socket.SHUT_WR)

    def _write(self) -> None:
        try:
            self._pending = self._pending[self._end.send(self._pending, socket.MSG_DONTWAIT) :]
        except BlockingIOError:
            return
        except OSError:  # QEMU is gone, which the connection is about to notice
            self._unwatch()
            return
        if not self._pending:
            self._watch(STDIN, self._read)

    def _look_for_escape(self, data: bytes) -> None:
        if not data:
            raise EndedError(signal.SIGHUP)
        for byte in data:
            self._escapes_seen = self._escapes_seen + 1 if byte == ESCAPE else 0
            if self._escapes_seen == ESCAPES:
                raise EndedError(signal.SIGINT)


@contextmanager
def _unchanged() -> Iterator[None]:
    yield


@contextmanager
def _raw(descriptor: int) -> Iterator[None]:
    """Make a terminal raw, keeping what has been typed ahead, and restore it however the body ends."""
    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@contextmanager
def _window_size(connection: Connection, terminals: Sequence[int]) -> Iterator[None]:
    """Give the inner terminal the size of the first of `terminals`, now and whenever it changes."""
    if not terminals:
        yield
        return

    def tell(_signum: int = 0, _frame: FrameType | None = None) -> None:
        size = os.get_terminal_size(terminals[0])
        connection.send(request("size", size.lines, size.columns))

    tell()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGWINCH, tell)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


@contextmanager
def _ending_signals() -> Iterator[Wake | None]:
    """Turn the signals that ask a process to end into `EndedError`, so that terminal and QEMU are seen to first."""
    if threading.current_thread() is not threading.main_thread():
        yield None
        return

    def end(signum: int, _frame: FrameType | None) -> None:
        raise EndedError(signal.Signals(signum))

    with handled((signal.SIGTERM, signal.SIGHUP), end) as wake:
        yield wake


@contextmanager
def _notice() -> Iterator[Callable[[], None]]:
    """Say on a terminal what takes these seconds, until the function yielded is called."""
    shown = os.isatty(STDERR)
    if shown:
        os.write(STDERR, NOTICE)

    def erase() -> None:
        nonlocal shown
        if shown:
            os.write(STDERR, ERASE_LINE)
        shown = False

    try:
        yield erase
    finally:
        erase()
