"""Frames over a stream socket, each after its length as a 32-bit big-endian number: what passt and QEMU's `-netdev stream` speak.

Who reads such a stream need not be able to put a frame together again that comes in many pieces: Debian 12's passt waits for one
more piece, and when that is not the rest, drops it all and takes whatever comes next for a length. So small frames go many at a
time but never in two of the kernel's buffers, and a large one goes by itself, in two.

Ref: qemu(1), -netdev stream
"""

from __future__ import annotations

import socket
from collections import deque
from itertools import islice
from struct import Struct
from typing import TYPE_CHECKING, Final

from xenpy.devices.vif.frame import ETH_HLEN, MAX_FRAME, Frame
from xenpy.devices.vif.link import BATCH, Link
from xenpy.loop import READ, WRITE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from xenpy.devices.vif.frame import Buffer
    from xenpy.devices.vif.link import Sink
    from xenpy.loop import Loop

LENGTH: Final = Struct(">I")
_BUFFER_SIZE: Final = 1 << 19
SOCKET_BUFFER: Final = 1 << 22
"""What we ask for; the kernel gives what net.core.wmem_max allows."""
_ONE_BUFFER: Final = 1 << 15
"""So much is never split, and a frame never in three: unix_stream_sendmsg fills buffers of 32 KiB and what fits beside the head."""
_MAX_PIECES: Final = 1000
"""Of one sendmsg. Ref: IOV_MAX, 1024 on Linux"""


class StreamLink(Link):
    """An interface's stream, which may end and be followed by another; `on_lost` is called when it has ended."""

    def __init__(self, loop: Loop, on_lost: Callable[[], None]) -> None:
        self._loop = loop
        self._on_lost = on_lost
        self._sink: Sink | None = None
        self._input = bytearray(_BUFFER_SIZE)
        self._filled = 0
        self._output: deque[bytes] = deque()
        """What the socket has no room for yet, in what is to be sent at a time."""
        self.is_reading = False
        self._socket: socket.socket | None = None

    def use(self, stream: socket.socket) -> None:
        """Go on with a new stream, which is ours to close."""
        self._drop()
        stream.setblocking(False)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
        self._socket = stream
        self._filled = 0
        self._output.clear()
        if self._sink is not None:
            self._watch()

    def _drop(self) -> None:
        """Close the stream, if there is one."""
        if self._socket is not None:
            for event in (READ, WRITE):
                self._loop.watch(self._socket.fileno(), event, None)
            self._socket.close()
            self._socket = None
        self.is_reading = False
        if self.busy:
            self.busy = False
            if self._sink is not None:
                self._sink.link_idle()

    def attach(self, sink: Sink) -> None:
        """Begin to deliver frames to an interface."""
        self._sink = sink
        if self._socket is not None:
            self._watch()

    def _watch(self) -> None:
        assert self._socket is not None
        self._loop.watch(self._socket.fileno(), READ, self._on_readable)
        self.is_reading = True

    def _lost(self) -> None:
        self._drop()
        self._on_lost()

    # -- from there ---------------------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        sink = self._sink
        if sink is None:
            return
        with sink.lock:
            if self._socket is None:
                return
            try:
                size = self._socket.recv_into(memoryview(self._input)[self._filled :])
            except BlockingIOError:
                return
            except OSError:
                size = 0
            if not size:
                self._lost()
                return
            self._filled += size
            self._deliver()

    def _deliver(self) -> None:
        """Give the interface the whole frames that have come, and read on only if it takes them all."""
        assert self._sink is not None
        view = memoryview(self._input)
        done = 0
        refused = False
        frames = self._frames(view)
        while batch := list(islice(frames, BATCH)):
            taken = self._sink.deliver([frame for frame, _ in batch])
            if taken:
                done = batch[taken - 1][1]
            if taken < len(batch):
                refused = True
                break
        rest = self._filled - done
        self._input[:rest] = self._input[done : self._filled]
        self._filled = rest
        if self._socket is not None and self.is_reading is refused:
            self.is_reading = not refused
            self._loop.watch(self._socket.fileno(), READ, None if refused else self._on_readable)

    def _frames(self, view: memoryview) -> Iterator[tuple[Frame, int]]:
        """Yield the whole frames of the buffer, and where each ends."""
        start = 0
        while start + LENGTH.size <= self._filled:
            size = LENGTH.unpack_from(view, start)[0]
            end = start + LENGTH.size + size
            if size > MAX_FRAME:
                self._loop.call_soon(self._on_nonsense)
                return
            if end > self._filled:
                return
            if size >= ETH_HLEN:
                yield Frame([view[start + LENGTH.size : end]], size, validated=True), end
            start = end

    def _on_nonsense(self) -> None:
        sink = self._sink
        if sink is not None:
            with sink.lock:
                if self._socket is not None:
                    self._lost()

    def resume(self) -> None:
        """Offer again what the interface did not take."""
        if not self.is_reading and self._socket is not None and self._sink is not None:
            self._deliver()

    # -- to there -----------------------------------------------------------------------------------------------------

    def send(self, frames: Sequence[Frame]) -> None:
        """Send frames; what the socket has no room for is kept, and the link is busy until it is gone."""
        pieces: list[Buffer] = []
        size = 0
        for frame in frames:
            whole = LENGTH.size + frame.size
            if pieces and (size + whole > _ONE_BUFFER or len(pieces) + 1 + len(frame.parts) > _MAX_PIECES):
                self._send(pieces, size)
                pieces, size = [], 0
            pieces.append(LENGTH.pack(frame.size))
            pieces.extend(frame.parts)
            size += whole
        self._send(pieces, size)

    def _send(self, pieces: Sequence[Buffer], size: int) -> None:
        if self._socket is None:
            return
        sent = 0
        if not self._output:
            try:
                sent = self._socket.sendmsg(pieces)
            except BlockingIOError:
                pass
            except OSError:
                return  # it ended: the read side hears of it
        if sent < size:
            self._output.append(b"".join(pieces)[sent:])
            if not self.busy:
                self.busy = True
                self._loop.watch(self._socket.fileno(), WRITE, self._on_writable)

    def _on_writable(self) -> None:
        sink = self._sink
        if sink is None:
            return
        with sink.lock:
            if self._socket is None:
                return
            try:
                while self._output:
                    data = self._output[0]
                    sent = self._socket.send(data)
                    if sent < len(data):
                        self._output[0] = data[sent:]
                        return
                    self._output.popleft()
            except BlockingIOError:
                return
            except OSError:
                self._output.clear()  # it ended: the read side hears of it
            self._loop.watch(self._socket.fileno(), WRITE, None)
            self.busy = False
            sink.link_idle()

    def close(self) -> None:
        """Close the stream."""
        self._sink = None
        self._drop()
