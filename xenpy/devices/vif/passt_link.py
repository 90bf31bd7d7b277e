"""User networking whose frames the host's loop moves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenpy.devices.vif.stream import StreamLink

if TYPE_CHECKING:
    import socket

    from xenpy.devices.vif.link import Sink
    from xenpy.devices.vif.passt import Passt
    from xenpy.loop import Loop


class PasstLink(StreamLink):
    """The stream of a `passt`, which is the link's to close."""

    def __init__(self, loop: Loop, passt: Passt) -> None:
        super().__init__(loop, passt.lost)
        self.passt = passt
        passt.on_stream = self._on_stream
        passt.on_change = self._on_change

    def attach(self, sink: Sink) -> None:
        """Begin to deliver frames to an interface."""
        super().attach(sink)
        stream = self.passt.open()
        if stream is not None:
            self.use(stream)

    def _on_stream(self, stream: socket.socket) -> None:
        if self._sink is None:
            stream.close()
            return
        with self._sink.lock:
            self.use(stream)

    def _on_change(self, up: bool) -> None:
        if self._sink is not None:
            with self._sink.lock:
                self._sink.link_changed(up=up)

    def close(self) -> None:
        """Close the stream and end passt."""
        super().close()
        self.passt.close()
