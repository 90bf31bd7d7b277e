"""Where an interface's frames are moved: in the host's loop; see `isolated` for a process of its own."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Protocol

from xenpy.abi.netif import NETIF_RX_SLOT_SIZE, NETIF_TX_SLOT_SIZE
from xenpy.devices.ring import BackRing
from xenpy.devices.vif.connection import Connection, Groups, Queue
from xenpy.devices.vif.near import NearGrants
from xenpy.devices.vif.port import Port
from xenpy.devices.vif.queue import RxRing, TxRing

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from xenpy.config.vif import VifConfig
    from xenpy.devices.trouble import Ask
    from xenpy.devices.vif.flow import Steering
    from xenpy.devices.vif.link import Link
    from xenpy.devices.vif.plan import Plan, QueuePlace
    from xenpy.devices.vif.services import VifServices


class Listener(Protocol):
    """Who is told what happens to the frames. Both may be called from any thread."""

    def fail(self, error: Exception) -> None:
        """Hear that the frontend broke the protocol, or that there is no going on."""

    def link_changed(self, *, up: bool) -> None:
        """Hear that the link went down or came up."""


class Station(Protocol):
    """Moves the frames of one interface. Everything is called under the host's lock, `close` without."""

    def connect(self, plan: Plan, steering: Steering) -> None:
        """Begin to serve a frontend. Raises FrontendError, GrantError, XenError with nothing left mapped or bound."""

    def disconnect(self, done: Callable[[], None]) -> None:
        """Let go of all that is the frontend's; then call `done`, from any thread."""

    def set(self, *, is_open: bool, filtering: bool) -> None:
        """Say whether frames pass, and whether the guest hears only the group addresses that it asked for."""

    def steer(self) -> None:
        """Take note of what the guest has changed about the steering that came with `connect`."""

    def trouble(self, ask: Ask | None) -> bool:
        """Have somebody asked what goes wrong with each frame, or nobody; tell whether that can be."""

    def kill(self) -> bool:
        """Kill the process that moves the frames; tell whether there is one."""

    def in_loop(self) -> Station:
        """Return what takes this one's place and moves the frames in the host's loop. While nothing is connected."""

    def close(self) -> None:
        """Free what is behind the interface."""


class InLoop:
    """Moves frames in the host's loop, under its lock: so links, queues and their buffers need no locks of their own."""

    def __init__(self, services: VifServices, domid: int, config: VifConfig, link: Link, listener: Listener) -> None:
        self._services = services
        self._domid = domid
        self._listener = listener
        self._stack = ExitStack()
        self._filtering = False
        self.port = Port(self, services.loop, link, config.rate)

    def in_loop(self) -> Station:
        """Return this one."""
        return self

    # -- what the port asks for ---------------------------------------------------------------------------------------

    @property
    def lock(self) -> threading.RLock:
        """Return the host's lock."""
        return self._services.lock

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Make a call later, in the loop's thread."""
        self._services.call_soon(callback)

    def give_up(self, error: Exception) -> None:
        """Have nothing more to do with the frontend's rings, and say why."""
        self._stack.close()
        self._listener.fail(error)

    def link_changed(self, *, up: bool) -> None:
        """Pass it on."""
        self._listener.link_changed(up=up)

    # -- what the interface asks for ----------------------------------------------------------------------------------

    def connect(self, plan: Plan, steering: Steering) -> None:
        """Map rings and bind ports. Raises FrontendError, GrantError, XenError."""
        with ExitStack() as stack:
            queues = [self._queue(place, stack) for place in plan.queues]
            self.port.connection = Connection(queues, plan.offloads, steering, Groups())
            self.port.connection.filtering = self._filtering
            self._stack = stack.pop_all()
        self.port.schedule()

    def _queue(self, place: QueuePlace, stack: ExitStack) -> Queue:
        grants = NearGrants(self._services, self._domid)
        tx = TxRing(self._ring(place.tx_gref, NETIF_TX_SLOT_SIZE, stack), grants)
        rx = RxRing(self._ring(place.rx_gref, NETIF_RX_SLOT_SIZE, stack), grants)
        tx_port = rx_port = self._bind(place.tx_port, stack)
        if place.rx_port != place.tx_port:
            rx_port = self._bind(place.rx_port, stack)
        notify = self._services.notify
        return Queue(tx, rx, partial(notify, tx_port), partial(notify, rx_port))

    def _ring(self, gref: int, slot_size: int, stack: ExitStack) -> BackRing:
        ring = BackRing([stack.enter_context(self._services.map_page(self._domid, gref)).view], slot_size)
        stack.callback(ring.close)
        return ring

    def _bind(self, port: int, stack: ExitStack) -> int:
        ours = self._services.bind(self._domid, port, self.port.schedule)
        stack.callback(self._services.unbind, ours)
        return ours

    def disconnect(self, done: Callable[[], None]) -> None:
        """Unmap and unbind; nothing of the guest's is in use between calls from the loop."""
        self.port.connection = None
        self._stack.close()
        done()

    def set(self, *, is_open: bool, filtering: bool) -> None:
        """Say whether frames pass, and whether the guest hears only the group addresses that it asked for."""
        self._filtering = filtering
        self.port.is_open = is_open
        if self.port.connection is not None:
            self.port.connection.filtering = filtering

    def steer(self) -> None:
        """Do nothing: the steering is the same object."""

    def trouble(self, ask: Ask | None) -> bool:
        """Have somebody asked what goes wrong with each frame, or nobody."""
        self.port.trouble(ask)
        return True

    def kill(self) -> bool:
        """Do nothing: there is no process."""
        return False

    def close(self) -> None:
        """Close the link."""
        self.port.close()
