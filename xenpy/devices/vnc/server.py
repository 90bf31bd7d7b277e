"""The viewers of one screen: their connections, served by one thread."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from xenpy import log
from xenpy.config.devices import VNC_PORT
from xenpy.devices.vnc.pixels import ViewerError
from xenpy.devices.vnc.session import Session
from xenpy.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.devices.vnc.frame import Frame
    from xenpy.devices.vnc.session import Input

_DISPLAYS: Final = 100
"""How many are tried when one that is free is looked for."""
_MAX_PORT: Final = 65535
_MAX_VIEWERS: Final = 16
_ENTRY_S: Final = 30.0
"""How long a viewer may take until it is let in."""
_CHUNK: Final = 1 << 16
_SHORTEST_S: Final = 1 / 30
_LONGEST_S: Final = 1 / 5
"""How long to wait between two looks at the screen: the one while it changes, the other when it has not for some time."""


def listen(address: str, display: int, *, unused: bool) -> socket.socket:
    """Listen on a display's TCP port, or with `unused` on the next one that is free. Raises HostError."""
    try:
        family, kind, _, _, where = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise HostError(f"vnclisten={address}: {getattr(error, 'strerror', None) or error}") from None
    first = VNC_PORT + display
    last = min(first + _DISPLAYS, _MAX_PORT) if unused else first
    reason: str | None = None
    for port in range(first, last + 1):
        sock = socket.socket(family, kind)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((where[0], port, *where[2:]))
            sock.listen()
            sock.setblocking(False)
        except OSError as error:
            sock.close()
            reason = error.strerror
        else:
            return sock
    ports = f"port {first}" if first == last else f"none of the ports {first} to {last}"
    hint = "" if unused else "; vncunused=1 takes the next one that is free"
    raise HostError(f"VNC on {address}, {ports} (vncdisplay={display}): {reason}{hint}")


class Server:
    """Serves a screen on a listening socket. `grab` returns what it shows now; it and `sink` are used in the server's thread."""

    def __init__(
        self, name: str, sock: socket.socket, grab: Callable[[], Frame], sink: Input, password: str | None
    ) -> None:
        self._name = name
        self._sock = sock
        self._grab = grab
        self._sink = sink
        self._password = password
        self._selector = selectors.DefaultSelector()
        self._viewers: set[_Viewer] = set()
        self._frame: Frame | None = None
        self._pause = _SHORTEST_S
        self._next_look = 0.0
        self._stopping = False
        self._wake, self._woken = socket.socketpair()
        self._selector.register(sock, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name=f"vnc {name}", daemon=True)

    @property
    def address(self) -> tuple[str, int]:
        """Return where it listens: an address and a TCP port."""
        host, port, *_ = self._sock.getsockname()
        return host, port

    def start(self) -> None:
        """Let viewers in."""
        self._thread.start()

    def close(self) -> None:
        """Send all viewers away and stop listening."""
        self._stopping = True
        self._wake.send(b"\0")
        if self._thread.ident is not None:
            self._thread.join()
        for viewer in list(self._viewers):
            self._drop(viewer, "the screen is gone")
        for sock in (self._sock, self._wake, self._woken):
            sock.close()
        self._selector.close()

    def _run(self) -> None:
        while not self._stopping:
            for key, events in self._selector.select(self._timeout()):
                if isinstance(key.data, _Viewer):
                    self._attempt(key.data, partial(self._serve, key.data, events))
                elif key.fileobj is self._sock:
                    self._accept()
            now = time.monotonic()
            for viewer in [viewer for viewer in self._viewers if not viewer.session.ready and viewer.deadline <= now]:
                self._drop(viewer, "took too long to say what comes first")
            self._show(now)

    def _timeout(self) -> float | None:
        """Return for how long nothing is to be done unless a viewer says something."""
        now = time.monotonic()
        times = [viewer.deadline - now for viewer in self._viewers if not viewer.session.ready]
        if any(viewer.session.waits for viewer in self._viewers):
            times.append(self._next_look - now)
        return max(0.0, min(times)) if times else None

    def _show(self, now: float) -> None:
        """Send viewers that wait for it what has changed; the screen is looked at once for all of them."""
        waiting = [viewer for viewer in self._viewers if viewer.session.waits]
        if not waiting:
            return
        if now >= self._next_look:
            frame = self._grab()
            before = self._frame
            same = before is not None and (before.width, before.height) == (frame.width, frame.height)
            if same and before is not None and before.data == frame.data:
                self._pause = min(self._pause * 2, _LONGEST_S)
            else:
                self._frame = frame
                self._pause = _SHORTEST_S
            self._next_look = now + self._pause
        frame = self._frame or self._grab()
        for viewer in waiting:
            self._attempt(viewer, partial(self._update, viewer, frame))

    def _update(self, viewer: _Viewer, frame: Frame) -> None:
        if viewer.session.update(frame):
            self._flush(viewer)

    # -- viewers; what one of them gets wrong costs itself only ---------------------------------------------------------

    def _accept(self) -> None:
        try:
            sock, _peer = self._sock.accept()
        except OSError:
            return  # it went away again, or there are no descriptors
        if len(self._viewers) >= _MAX_VIEWERS:
            sock.close()
            log.debug(f"VNC {self._name}: a viewer is sent away: there are {_MAX_VIEWERS}")
            return
        sock.setblocking(False)
        viewer = _Viewer(sock)
        viewer.session = Session(
            self._name, self._grab(), self._sink, self._password,
            lambda shared: None if shared else self._alone(viewer),
        )  # fmt: skip
        self._viewers.add(viewer)
        self._selector.register(sock, selectors.EVENT_READ, viewer)
        self._attempt(viewer, lambda: self._flush(viewer))

    def _alone(self, viewer: _Viewer) -> None:
        for other in [other for other in self._viewers if other is not viewer and other.session.ready]:
            self._drop(other, "another viewer wants the screen for itself")

    def _attempt(self, viewer: _Viewer, action: Callable[[], None]) -> None:
        if viewer not in self._viewers:
            return
        try:
            action()
        except (ViewerError, OSError) as error:
            self._drop(viewer, str(error))
        except Exception as error:  # a bug of ours must not cost the other viewers
            self._drop(viewer, f"internal error: {error!r}")

    def _serve(self, viewer: _Viewer, events: int) -> None:
        if events & selectors.EVENT_READ:
            try:
                data = viewer.sock.recv(_CHUNK)
            except BlockingIOError:
                data = None
            if data == b"":
                self._drop(viewer, "has left")
                return
            if data:
                try:
                    viewer.session.receive(data)
                except ViewerError:
                    self._flush(viewer)  # why, as far as it hears it
                    raise
                self._pause, self._next_look = _SHORTEST_S, min(self._next_look, time.monotonic() + _SHORTEST_S)
        self._flush(viewer)

    def _flush(self, viewer: _Viewer) -> None:
        """Send as much as the connection takes now, and have the rest sent when it takes more."""
        out = viewer.session.out
        try:
            while out:
                sent = viewer.sock.send(out)
                del out[:sent]
        except BlockingIOError:
            pass
        events = selectors.EVENT_READ
        if out:
            # Who does not take what it has asked for is not asked for more.
            events = selectors.EVENT_WRITE
        if events != viewer.events:
            self._selector.modify(viewer.sock, events, viewer)
            viewer.events = events

    def _drop(self, viewer: _Viewer, reason: str) -> None:
        if viewer not in self._viewers:
            return
        self._viewers.discard(viewer)
        self._selector.unregister(viewer.sock)
        viewer.sock.close()
        viewer.session.end()
        log.debug(f"VNC {self._name}: a viewer is gone: {reason}")


class _Viewer:
    """A connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.session: Session
        """Set when it is known what to do when it is let in."""
        self.deadline = time.monotonic() + _ENTRY_S
        self.events = selectors.EVENT_READ
