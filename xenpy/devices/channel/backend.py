"""A console beside the first in xenbus: its ring, served in the loop's thread.

Ref: xen/include/public/io/console.h, docs/misc/console.txt
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

from xenpy.devices.console import ConsoleRing
from xenpy.devices.xenbus import Backend, Nodes, Services
from xenpy.errors import FrontendError
from xenpy.pv.xenstore.toolstack import CONSOLE_LIMIT

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from xenpy.config.devices import ChannelConfig
    from xenpy.devices.channel.ends import HostEnd
    from xenpy.loop import Loop

FIRST_CHANNEL: Final = 1
"""Device number of the first channel: console 0 is the one that every guest has."""


class ChannelServices(Services, Protocol):
    """What a channel needs of the host beyond what every backend does."""

    @property
    def loop(self) -> Loop:
        """Return the host's loop."""


class Channel(Backend):
    """One channel= entry before `end`, which is the channel's to close."""

    kind: ClassVar[str] = "console"

    def __init__(self, services: ChannelServices, domid: int, config: ChannelConfig, end: HostEnd) -> None:
        super().__init__(services, domid, config.devid + FIRST_CHANNEL)
        self.config = config
        self.end = end
        self._ring: ConsoleRing | None = None
        self._resources = ExitStack()
        self._due = False

    def backend_nodes(self) -> Nodes:
        """Return what libxl writes for a channel."""
        config = self.config
        nodes: Nodes = {"name": config.name, "connection": config.connection.value, "protocol": "vt100"}
        return nodes if config.path is None else nodes | {"path": config.path}

    def frontend_nodes(self) -> Nodes:
        """Return what libxl writes for a channel."""
        config = self.config
        return {
            "limit": CONSOLE_LIMIT,
            "type": "ioemu",
            "output": config.connection.value,
            "name": config.name,
            "protocol": "vt100",
        }

    def start(self) -> None:
        """Show the guest the channel, and begin to serve the host's end."""
        super().start()
        with self.lock:
            # Programs of the host's open what `tty` names, so it is not the guest's to change.
            perms = ["n0", f"r{self.domid}"]
            self.services.store.write(f"{self.params.frontend_path}/tty", self.end.path, perms)
            self.end.attach(self)

    def connect(self) -> Nodes:
        """Map the ring and bind to its port. Raises FrontendError, XenError, GrantError."""
        services, frontend = self.services, self.frontend
        with ExitStack() as undo:
            page = undo.enter_context(services.map_page(self.domid, frontend.gref("ring-ref")))
            ring = ConsoleRing(page.view, self._notify, self.end.put)
            undo.callback(ring.close)
            self._port = services.bind(self.domid, frontend.port("port"), self._on_event)
            undo.callback(services.unbind, self._port)
            self._resources = undo.pop_all()
        self._ring = ring
        self.end.read_on()
        return {}

    def disconnect(self, done: Callable[[], None]) -> None:
        """Take what is left in the ring and let go of it."""
        if self._ring is not None:
            self._ring.on_event()
        self._ring = None
        self._resources.close()
        self.end.read_on()
        done()

    def release(self) -> None:
        """Close the host's end."""
        with self.lock:
            self.end.close()

    def _notify(self) -> None:
        self.services.notify(self._port)

    def _on_event(self) -> None:
        """Have the ring looked at in the loop's thread; called in a vCPU's."""
        if not self._due:
            self._due = True
            self.services.call_soon(self._serve)

    def _serve(self) -> None:
        with self.lock:
            self._due = False
            self.resume()
            self.end.read_on()

    # -- what the host's end asks for, see xenpy.devices.channel.ends.Peer --------------------------------------------

    @property
    def lock(self) -> threading.RLock:
        """Return the host's lock."""
        return self.services.lock

    @property
    def room(self) -> int:
        """Return how many bytes of input the guest's ring may be given; none while no driver is connected."""
        return 0 if self._ring is None or self._ring.broken else self._ring.room

    def give(self, data: bytes) -> None:
        """Queue input for the guest."""
        if self._ring is not None:
            self._ring.send_input(data)
            self._check()

    def resume(self) -> None:
        """Take output that was left in the ring."""
        if self._ring is not None:
            self._ring.on_event()
            self._check()

    def _check(self) -> None:
        if self._ring is not None and self._ring.broken:
            self._ring = None  # one complaint is enough
            self.fail(FrontendError("the indices of its ring are further apart than it is long"))
