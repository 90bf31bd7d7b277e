"""The event loop between this process and the emulated host's channels."""

from __future__ import annotations

import os
import selectors
import time
from typing import TYPE_CHECKING

from xenpy.emulated.machine import Channel
from xenpy.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.emulated.machine import Machine

READ_SIZE = 65536
LOG_LIMIT = 65536
"""Bytes of the emulated host's last messages that are kept to explain its death."""
LOG_LINES_SHOWN = 12
LINE_LIMIT = 4096
"""Bytes within which the agent ends its line."""
SEND_TIMEOUT = 60.0
"""Seconds in which the agent takes a request."""
NOISE = b"warning: TCG doesn't support requested feature"
"""What QEMU always says of the processor model; it is known and of no consequence."""

BACKTRACE = b"Call Trace:"
"""What follows in the kernel's messages explains nothing to a user."""


class Connection:
    """Requests to the agent, its answers, and what commands write, for one machine; every method raises HostError if it dies."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._selector = (
            selectors.PollSelector()
        )  # unlike epoll it takes a regular file, which may be our standard input
        self._control = machine.channels[Channel.CONTROL]
        self._control.settimeout(SEND_TIMEOUT)
        self._partial = b""
        self._log = b""
        self.lines: list[str] = []
        """Lines of the agent not yet taken."""
        self.sinks: dict[Channel, Callable[[bytes], None]] = {}
        """Who gets the bytes of a channel; without a sink they are dropped."""
        self.watch(machine.log, self._read_log)
        self.watch(self._control.fileno(), self._read_control)
        for channel in (Channel.STDOUT, Channel.STDERR, Channel.TERMINAL):
            self.watch(machine.channels[channel].fileno(), self._reader(channel))

    def watch(self, descriptor: int, handler: Callable[[], None], *, events: int = selectors.EVENT_READ) -> None:
        """Call `handler` whenever `descriptor` is ready, from within `wait`."""
        self._selector.register(descriptor, events, handler)

    def unwatch(self, descriptor: int) -> None:
        """Undo `watch`."""
        self._selector.unregister(descriptor)

    def send(self, request: bytes) -> None:
        """Send a request to the agent."""
        try:
            self._control.sendall(request)
        except OSError as error:
            self._machine_lost("takes no request", error)

    def wait(self, done: Callable[[], bool], *, timeout: float | None) -> bool:
        """Handle events until `done()`; returns False if that takes longer than `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not done():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            for key, _ in self._selector.select(left):
                key.data()
        return True

    def log_tail(self) -> str:
        """Return the last lines that the emulated host's kernel and QEMU said."""
        said, _, _ = self._log.partition(BACKTRACE)
        lines = [line for line in said.splitlines() if line.strip() and NOISE not in line]
        return "\n".join(f"  {line.decode('utf-8', 'replace')}" for line in lines[-LOG_LINES_SHOWN:])

    def close(self) -> None:
        """Forget all descriptors; the machine is somebody else's to close."""
        self._selector.close()

    def _read_log(self) -> None:
        data = os.read(self._machine.log, READ_SIZE)
        if not data:
            self._machine_lost("ended unexpectedly")
        self._log = (self._log + data)[-LOG_LIMIT:]

    def _read_control(self) -> None:
        data = self._receive(Channel.CONTROL)
        *lines, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) > LINE_LIMIT:
            self._machine_lost("talks nonsense")
        self.lines += [line.decode("utf-8", "replace") for line in lines]

    def _reader(self, channel: Channel) -> Callable[[], None]:
        def read() -> None:
            data = self._receive(channel)
            sink = self.sinks.get(channel)
            if data and sink is not None:
                sink(data)

        return read

    def _receive(self, channel: Channel) -> bytes:
        end = self._machine.channels[channel]
        try:
            data = end.recv(READ_SIZE)
        except OSError:
            data = b""
        if not data:  # QEMU is gone; its last words, and so the report, come by the log
            self.unwatch(end.fileno())
        return data

    def _machine_lost(self, how: str, error: OSError | None = None) -> None:
        tail = self.log_tail()
        raise HostError(f"the emulated host {how}" + (f"; its last messages:\n{tail}" if tail else "")) from error
