"""What drives the socket transport: a loop of its own, or the VMM's.

The store needs no loop; only descriptors do.
"""

from __future__ import annotations

import contextlib
import select
import selectors
import socket
from collections import deque
from typing import TYPE_CHECKING, Protocol

from xenpy.signals import Wake

if TYPE_CHECKING:
    from collections.abc import Callable

WAKE_SIZE = 4096


class Endpoint(Protocol):
    """A file descriptor with what to do when it is ready; all is called in the loop's thread."""

    def fileno(self) -> int:
        """Return the descriptor."""

    def interest(self) -> int:
        """Return the `selectors` events to wait for, at least one."""

    def on_readable(self) -> None:
        """Take what has arrived."""

    def on_writable(self) -> None:
        """Send what waits."""

    def dispose(self) -> None:
        """Close the descriptor, which the loop no longer watches."""


class Loop(Protocol):
    """An I/O loop; all may be called from any thread."""

    def add(self, endpoint: Endpoint) -> None:
        """Begin to drive an endpoint."""

    def update(self, endpoint: Endpoint) -> None:
        """Ask for `endpoint.interest()` again."""

    def remove(self, endpoint: Endpoint) -> None:
        """Forget an endpoint, then call its `dispose`."""


class DescriptorLoop(Protocol):
    """What `AdaptedLoop` needs of the VMM's loop (`xenpy.loop.Loop`); `event` is EPOLLIN or EPOLLOUT."""

    def watch(self, fd: int, event: int, callback: Callable[[], None] | None) -> None:
        """Call `callback` when fd is ready, or stop doing so."""

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call `callback` in the loop's thread; callable from any."""


class AdaptedLoop:
    """A Loop on top of another that watches descriptors in its own thread only."""

    def __init__(self, loop: DescriptorLoop) -> None:
        self._loop = loop
        self._driven: set[Endpoint] = set()

    def add(self, endpoint: Endpoint) -> None:
        """Begin to drive an endpoint."""
        self._driven.add(endpoint)
        self._loop.call_soon(lambda: self._apply(endpoint))

    def update(self, endpoint: Endpoint) -> None:
        """Ask for `endpoint.interest()` again."""
        self._loop.call_soon(lambda: self._apply(endpoint))

    def remove(self, endpoint: Endpoint) -> None:
        """Forget an endpoint, then call its `dispose`."""
        self._loop.call_soon(lambda: self._drop(endpoint))

    def _apply(self, endpoint: Endpoint) -> None:
        if endpoint not in self._driven:
            return
        interest, fd = endpoint.interest(), endpoint.fileno()
        self._loop.watch(fd, select.EPOLLIN, endpoint.on_readable if interest & selectors.EVENT_READ else None)
        self._loop.watch(fd, select.EPOLLOUT, endpoint.on_writable if interest & selectors.EVENT_WRITE else None)

    def _drop(self, endpoint: Endpoint) -> None:
        if endpoint not in self._driven:
            return
        self._driven.discard(endpoint)
        for event in (select.EPOLLIN, select.EPOLLOUT):
            self._loop.watch(endpoint.fileno(), event, None)
        endpoint.dispose()


class SelectorLoop:
    """A Loop for one thread that calls `run`; for the stand-alone server and tests."""

    def __init__(self, wake: Wake | None = None) -> None:
        """Take what wakes it for signals whose handlers call `stop`, if there are any."""
        self._selector = selectors.DefaultSelector()
        self._receiver, self._sender = socket.socketpair()
        for sock in (self._receiver, self._sender):
            sock.setblocking(False)
        self._selector.register(self._receiver, selectors.EVENT_READ)
        if wake is not None:
            self._selector.register(wake, selectors.EVENT_READ, wake)
        self._calls: deque[Callable[[], None]] = deque()
        self._stopping = False

    def add(self, endpoint: Endpoint) -> None:
        """Begin to drive an endpoint."""
        self._soon(lambda: self._register(endpoint))

    def update(self, endpoint: Endpoint) -> None:
        """Ask for `endpoint.interest()` again."""
        self._soon(lambda: self._refresh(endpoint))

    def remove(self, endpoint: Endpoint) -> None:
        """Forget an endpoint, then call its `dispose`."""
        self._soon(lambda: self._drop(endpoint))

    def stop(self) -> None:
        """Let `run` return; callable from a signal handler or another thread."""
        self._stopping = True
        self._wake()

    def run(self) -> None:
        """Drive the endpoints until `stop`."""
        while not self._stopping:
            for key, events in self._selector.select():
                self._serve(key.data, events)
            self._run_calls()

    def close(self) -> None:
        """Dispose of what was removed since `run` returned, and free the loop."""
        self._run_calls()
        self._selector.close()
        self._receiver.close()
        self._sender.close()

    def _serve(self, endpoint: Endpoint | Wake | None, events: int) -> None:
        if endpoint is None:
            with contextlib.suppress(BlockingIOError):
                self._receiver.recv(WAKE_SIZE)
            return
        if isinstance(endpoint, Wake):
            endpoint.drained()
            return
        if events & selectors.EVENT_WRITE:
            endpoint.on_writable()
        if events & selectors.EVENT_READ:
            endpoint.on_readable()

    def _register(self, endpoint: Endpoint) -> None:
        self._selector.register(endpoint, endpoint.interest(), endpoint)

    def _refresh(self, endpoint: Endpoint) -> None:
        if endpoint in self._selector.get_map():
            self._selector.modify(endpoint, endpoint.interest(), endpoint)

    def _drop(self, endpoint: Endpoint) -> None:
        if endpoint in self._selector.get_map():
            self._selector.unregister(endpoint)
        endpoint.dispose()

    def _soon(self, call: Callable[[], None]) -> None:
        self._calls.append(call)
        self._wake()

    def _run_calls(self) -> None:
        while self._calls:
            self._calls.popleft()()

    def _wake(self) -> None:
        # A full pipe wakes as well as one byte.
        with contextlib.suppress(BlockingIOError):
            self._sender.send(b"\0")
