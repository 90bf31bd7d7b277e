"""A console with any number of viewers, each of whom sees every byte since the first."""

from __future__ import annotations

import select
import threading
import time
from typing import TYPE_CHECKING, Final

from xenpy.loop import READ, WRITE
from xenpy.terminal import Terminal

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from xenpy.devices.console import ConsoleRing
    from xenpy.loop import Loop

KEPT: Final = 16 << 20
"""Bytes that are kept for viewers to come; a viewer that is so far behind holds the guest back."""
_SPARE: Final = 64 << 10
"""Bytes kept beyond that: what an ended domain leaves in its ring comes without asking."""
_CHUNK: Final = 64 << 10
_MAX_INPUT: Final = 4 << 10
_RETRY_S: Final = 0.02
_PATIENCE_S: Final = 60.0
"""How long the process of a domain that has ended waits for a viewer that takes nothing."""


class Backlog:
    """The last `kept` bytes of an endless stream. Thread-safe."""

    def __init__(self, kept: int = KEPT + _SPARE) -> None:
        self._kept = kept
        self._lock = threading.Lock()
        self._data = bytearray()
        self.start = 0
        """The place in the stream of the first byte that is there."""

    @property
    def end(self) -> int:
        """Return the place behind the last byte."""
        return self.start + len(self._data)

    def add(self, data: bytes) -> None:
        """Append to the stream, and let go of the oldest."""
        with self._lock:
            self._data += data
            excess = len(self._data) - self._kept
            if excess > 0:
                del self._data[:excess]
                self.start += excess

    def read(self, place: int) -> bytes:
        """Return some of what is behind a place."""
        with self._lock:
            at = max(0, place - self.start)
            return bytes(self._data[at : at + _CHUNK])


class _Viewer:
    """One connection: what it has seen, and what it types."""

    def __init__(self, connection: socket.socket, place: int) -> None:
        self.connection = connection
        self.place = place
        self.waits = False  # for room in the socket
        self.listens = False


class SharedConsole(Terminal):
    """A terminal whose console others may watch, and type into, over connections.

    `lock` is the host's: consoles are used under it.
    """

    def __init__(
        self, loop: Loop, on_escape: Callable[[], None], on_lost: Callable[[OSError], None], lock: threading.RLock, *,
        stdin: int = 0, stdout: int = 1,
    ) -> None:  # fmt: skip
        super().__init__(loop, on_escape, on_lost, stdin=stdin, stdout=stdout)
        self._host_lock = lock
        self.backlog = Backlog()
        self._viewers: list[_Viewer] = []
        self._due = False
        self._let_go = False
        self._held = False
        """The guest has more to say and waits for a viewer."""

    def let_go(self) -> None:
        """Restore the terminal and have no more to do with it; the viewers stay."""
        self.restore()
        self._let_go = self._dead = True

    # -- output -------------------------------------------------------------------------------------------------------

    def sink(self, data: bytes) -> int:
        """Write what stdout takes without blocking, and keep that for the viewers; return how much."""
        room = KEPT - max((self.backlog.end - viewer.place for viewer in self._viewers), default=0)
        if room < len(data):
            self._held = True
        taken = super().sink(data[: max(0, room)])
        self._keep(data[:taken])
        return taken

    def write_all(self, data: bytes) -> None:
        """Write to stdout, waiting as long as it takes; the viewers get it as well."""
        self._keep(data)
        super().write_all(data)

    def _keep(self, data: bytes) -> None:
        if not data:
            return
        self.backlog.add(data)
        if self._viewers and not self._due:
            self._due = True
            self._loop.call_soon(self._serve_all)

    def _on_room(self) -> None:
        with self._host_lock:
            super()._on_room()

    def _on_input(self) -> None:
        with self._host_lock:
            super()._on_input()

    def attach(self, console: ConsoleRing | None) -> None:
        """Join terminal and viewers to a console, or to none. In the loop's thread."""
        if self._let_go:
            self._console = console
        else:
            super().attach(console)
        for viewer in self._viewers:
            self._listen(viewer, on=console is not None)

    # -- viewers ------------------------------------------------------------------------------------------------------

    @property
    def lost(self) -> int:
        """Return how many bytes, from the first, are not kept any more."""
        return self.backlog.start

    def add_viewer(self, connection: socket.socket) -> None:
        """Send a connection, which does not block, all output kept and to come, and take its input. In the loop's thread."""
        viewer = _Viewer(connection, self.backlog.start)
        self._viewers.append(viewer)
        self._listen(viewer, on=self._console is not None)
        self._serve(viewer)

    def _serve_all(self) -> None:
        self._due = False
        for viewer in list(self._viewers):
            self._serve(viewer)

    def _serve(self, viewer: _Viewer) -> None:
        """Give a viewer what its socket takes."""
        if viewer.waits:
            return
        if not self._send(viewer):
            return
        if viewer.place < self.backlog.end:
            viewer.waits = True
            self._loop.watch(viewer.connection.fileno(), WRITE, lambda: self._on_viewer_room(viewer))
        self._release()

    def _release(self) -> None:
        """Let the guest go on if it waits for viewers, who may have got on."""
        with self._host_lock:
            if self._held and self._console is not None:
                self._held = False
                self._console.on_event()

    def _on_viewer_room(self, viewer: _Viewer) -> None:
        viewer.waits = False
        self._loop.watch(viewer.connection.fileno(), WRITE, None)
        self._serve(viewer)

    def _send(self, viewer: _Viewer) -> bool:
        """Send what the socket takes; tell whether the viewer is still there."""
        try:
            while viewer.place < self.backlog.end:
                viewer.place = max(viewer.place, self.backlog.start)
                viewer.place += viewer.connection.send(self.backlog.read(viewer.place))
        except BlockingIOError:
            pass
        except OSError:
            self._drop(viewer)
            return False
        return True

    def _listen(self, viewer: _Viewer, *, on: bool) -> None:
        if on != viewer.listens:
            viewer.listens = on
            self._loop.watch(viewer.connection.fileno(), READ, (lambda: self._on_typed(viewer)) if on else None)

    def _on_typed(self, viewer: _Viewer) -> None:
        console = self._console
        if console is None:
            return
        if console.room < _MAX_INPUT:  # the guest does not read
            self._listen(viewer, on=False)
            self._loop.call_later(_RETRY_S, lambda: self._listen_again(viewer))
            return
        try:
            data = viewer.connection.recv(_MAX_INPUT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(viewer)
            return
        with self._host_lock:
            console.send_input(data)

    def _listen_again(self, viewer: _Viewer) -> None:
        if viewer in self._viewers and self._console is not None:
            self._listen(viewer, on=True)

    def _drop(self, viewer: _Viewer) -> None:
        self._viewers.remove(viewer)
        self._listen(viewer, on=False)
        if viewer.waits:
            self._loop.watch(viewer.connection.fileno(), WRITE, None)
        viewer.connection.close()
        self._release()

    def finish(self) -> None:
        """Send all viewers the rest and close their connections; when the loop has ended.

        A viewer that takes nothing for a minute is given up.
        """
        poll = select.poll()
        viewers = {viewer.connection.fileno(): viewer for viewer in self._viewers}
        for fd in viewers:
            poll.register(fd, select.POLLOUT)
        deadline = time.monotonic() + _PATIENCE_S
        while viewers and time.monotonic() < deadline:
            for fd, _ in poll.poll(1000):
                viewer, before = viewers[fd], viewers[fd].place
                try:
                    viewer.place += viewer.connection.send(self.backlog.read(viewer.place))
                    done = viewer.place >= self.backlog.end
                except OSError:
                    done = True
                if viewer.place > before:
                    deadline = time.monotonic() + _PATIENCE_S
                if done:  # nobody waits for another viewer
                    poll.unregister(fd)
                    viewers.pop(fd).connection.close()
        for viewer in viewers.values():
            viewer.connection.close()
        self._viewers.clear()
