"""The xenbus handshake, once for every backend: two ends, a `state` node each, and a table of what to do when they differ.

A backend's end is `/local/domain/0/backend/KIND/DOMID/DEVID`, the guest's is `/local/domain/DOMID/device/KIND/DEVID`.

Ref: xen/include/public/io/xenbus.h, docs/misc/xenstore-paths.pandoc
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

from xenpy import log
from xenpy.abi.xenbus import XenbusState
from xenpy.devices.frontend import FrontendNodes
from xenpy.devices.handshake import STEPS, Step
from xenpy.errors import FrontendError, XenError, XenpyError
from xenpy.pv.gnttab import GrantError
from xenpy.pv.xenstore.toolstack import DeviceParams, add_device, remove_device

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.pv.gnttab import GrantMapping
    from xenpy.pv.xenstore.client import Client, LocalWatch
    from xenpy.pv.xenstore.server import Xenstore

Nodes = dict[str, str | int]
"""Names and values to write below an end's directory."""

_MAX_FAILURES: Final = 16
"""After so many breaches of protocol a frontend is not offered its device again."""


_MAX_ERROR: Final = 512
"""Characters of a message that go to xenstore."""


class Services(Protocol):
    """What a backend needs of the host. `map_page`, `bind`, `unbind` and what concerns the store are called under `lock`."""

    @property
    def lock(self) -> threading.RLock:
        """Return the lock that guards grants, event channels and the store."""

    @property
    def store(self) -> Xenstore:
        """Return the store."""

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Make a call later, in the thread of the host's loop and without the lock; from any thread."""

    def map_page(self, domid: int, gref: int, *, readonly: bool = False) -> GrantMapping:
        """Map a page that a guest has granted to us. Raises GrantError, XenError(ESRCH)."""

    def bind(self, domid: int, port: int, handler: Callable[[], None]) -> int:
        """Bind to a port of a guest's and return ours; `handler` runs under the lock in the sender's thread. Raises XenError."""

    def unbind(self, port: int) -> None:
        """Close a port of ours."""

    def notify(self, port: int) -> None:
        """Send an event on a port of ours, with or without the lock; to a guest that closed its end it is nothing."""


@dataclass(frozen=True, slots=True)
class BackendState:
    """A device as plain data; what its ends have written down is in the store, what is in its rings is the guest's memory."""

    kind: str
    devid: int
    state: XenbusState
    connected: bool
    online: bool
    failures: int


class Backend(ABC):
    """One device of one guest: the base of every backend.

    `start` makes the device appear in the guest, `unplug` asks the guest to give it up, `close` takes it away. What the table asks for is
    done in the thread of the host's loop, under the host's lock; only `fail` may be called from any thread.
    """

    kind: ClassVar[str]
    """The name of the device's directory in xenstore."""
    can_be_saved: ClassVar[bool] = True
    """Whether another backend can go on with a connected frontend, knowing no more than the rings and the store say."""

    def __init__(self, services: Services, domid: int, devid: int) -> None:
        self.services = services
        self.domid = domid
        self.params = DeviceParams(domid, self.kind, devid)
        self.frontend = FrontendNodes(services.store, self.params.frontend_path)
        self.state = XenbusState.Initialising
        self.on_gone: Callable[[Backend], None] | None = None
        """Called in the loop's thread, without the lock, when an unplugged device has gone."""
        self.find: Callable[[str, int], Backend | None] = lambda _kind, _devid: None
        """Finds another device of the same guest by kind and number."""
        self._online = True
        self._connected = False  # something of the guest's is in use, or is about to be let go of
        self._drained: threading.Event | None = (
            None  # being disconnected; set when nothing of the guest's is used any more
        )
        self._after = Step.CLOSE  # ... and what to do then
        self._failures = 0
        self._watch: LocalWatch | None = None
        self._scheduled = self._parked = False
        self._closed = self._retiring = False
        self._withdrawn = threading.Event()

    # -- what a kind of device says and does --------------------------------------------------------------------------

    def backend_nodes(self) -> Nodes:
        """Return what the toolstack writes on our side, beyond what every device has."""
        return {}

    def frontend_nodes(self) -> Nodes:
        """Return what the toolstack writes on the guest's side, beyond what every device has."""
        return {}

    def offer(self) -> Nodes:
        """Return what the device can do, to be written before InitWait."""
        return {}

    @abstractmethod
    def connect(self) -> Nodes:
        """Connect to what `frontend` says, and return what is to be written before Connected; called under the lock.

        Raises FrontendError, XenError, GrantError or XenpyError with nothing left mapped, bound or running.
        """

    @abstractmethod
    def disconnect(self, done: Callable[[], None]) -> None:
        """Begin to let go of the guest's memory and ports; when nothing of it is used any more, call `done`, from any thread.

        Called once for each `connect` that returned, under the lock, for which it must not wait.
        """

    def reconfigure(self) -> None:
        """Take note of what the frontend changed while connected; called under the lock. Raises FrontendError."""
        raise FrontendError(f"a {self.kind} has nothing to reconfigure")

    def kill(self) -> bool:
        """Kill the process that serves the device, as a fault would; tell whether there is one. From any thread."""
        return False

    @abstractmethod
    def release(self) -> None:
        """Free what the device has of the host; after the last disconnection, without the lock."""

    # -- from the host ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Write the device's tree and serve it."""
        store = self.services.store
        with self.services.lock:
            add_device(store, self.params, self.backend_nodes(), self.frontend_nodes())
            self._offer()
            self._watch = store.watch(f"{self.params.frontend_path}/state", lambda _path, _token: self._schedule())

    def take_over(self, state: BackendState) -> None:
        """Go on with a device whose tree and frontend are there already, where another backend has left it; nothing is written."""
        with self.services.lock:
            self.state, self._online, self._failures = state.state, state.online, state.failures
            path = f"{self.params.frontend_path}/state"
            if state.connected:
                self._attempt(self._reconnect)
            self._watch = self.services.store.watch(path, lambda _path, _token: self._schedule())

    def park(self) -> BackendState:
        """Let go of the guest's memory and ports, unseen by the guest, which stands still; return what another backend goes on from.

        Until `unpark` nothing is done for the guest. The caller must not hold the lock.
        """
        with self.services.lock:
            drained, self._parked = self._drained, True
        if drained is not None:
            drained.wait()
        parked = threading.Event()
        with self.services.lock:
            if self._connected and self._drained is None:
                self.disconnect(parked.set)
            else:
                parked.set()
            state = BackendState(
                self.kind, self.params.devid, self.state, self._connected, self._online, self._failures
            )
        parked.wait()
        return state

    def memory_frozen(self) -> None:
        """Take note, parked, that the guest's RAM is private from now on: no other process sees what is written there."""
        return

    def unpark(self) -> None:
        """Go on where `park` left off."""
        with self.services.lock:
            self._parked = False
            if self._closed:
                self._connected = False
            elif self._connected:
                self._attempt(self._reconnect)
            self._schedule()

    def _reconnect(self) -> None:
        self._connected = False
        self.connect()
        self._connected = True

    def unplug(self) -> None:
        """Ask the guest to give the device up; it goes when the guest has done so, or at once if no driver has it."""
        with self.services.lock:
            if self._closed or not self._online:
                return
            self._online = False
            self.write({"online": 0})
            if self.state is not XenbusState.Closed:
                self._switch(XenbusState.Closing)
            self._schedule()

    def close(self) -> None:
        """Take the device away, wanted or not, and wait until nothing of the guest's or the host's is used.

        The caller must not hold the lock.
        """
        with self.services.lock:
            first = not self._closed
            if first:
                self._closed = True
                if self._watch is not None:
                    self._watch.cancel()
                if self._connected:
                    self._drain(Step.CLOSE)
            drained = self._drained
        if not first:
            self._withdrawn.wait()
            return
        if drained is not None:
            drained.wait()
        with self.services.lock:
            remove_device(self.services.store, self.params)
        self.release()
        if not self._online:
            self.services.call_soon(self._tell_gone)
        self._withdrawn.set()  # last: who waits for it may end the loop next

    def _tell_gone(self) -> None:
        if self.on_gone is not None:
            self.on_gone(self)

    def fail(self, error: Exception) -> None:
        """End the connection because the frontend broke the protocol, or because we cannot go on; from any thread."""
        self.services.call_soon(lambda: self._failed(error))

    def write(self, nodes: Nodes) -> None:
        """Write nodes on our side, in one transaction; called under the lock."""

        def write_all(client: Client) -> None:
            for name, value in nodes.items():
                client.write(f"{self.params.backend_path}/{name}", value)

        self.services.store.atomically(write_all)

    # -- the state machine --------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        """Have the frontend's state looked at; it may have changed more than once by then, and only where it stands counts."""
        if not self._scheduled:
            self._scheduled = True
            self.services.call_soon(self._step)

    def _step(self) -> None:
        self._scheduled = False
        with self.services.lock:
            if not self._closed and not self._parked and self._drained is None:
                step = STEPS[self.state].get(self.frontend.state())
                if step is not None:
                    self._take(step)
        if self.state is XenbusState.Closed and not self._online and not self._retiring:
            self._retiring = True
            # To release may take time, as for an image server that writes back what it has; not in the loop's thread.
            name = f"{self.kind} {self.domid}/{self.params.devid} ends"
            threading.Thread(target=self.close, name=name, daemon=True).start()

    def _take(self, step: Step) -> None:
        match step:
            case Step.OFFER:
                self._offer()
            case Step.CONNECT:
                self._attempt(self._connect)
            case Step.RECONFIGURE:
                self._attempt(self.reconfigure)
            case Step.CLOSING:
                self._switch(XenbusState.Closing)
            case Step.CLOSE | Step.RESTART:
                self._drain(step)

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except (FrontendError, GrantError, XenError, XenpyError) as error:
            self._failed(error)

    def _offer(self) -> None:
        if self._online and self._failures < _MAX_FAILURES:
            self.write(self.offer())
            self._switch(XenbusState.InitWait)
        elif self.state is not XenbusState.Closed:
            self._switch(XenbusState.Closed)

    def _connect(self) -> None:
        nodes = self.connect()
        self._connected = True
        self.write(nodes)
        self._switch(XenbusState.Connected)

    def _drain(self, after: Step) -> None:
        """Let go of what is the guest's, then do as `after` says; called under the lock."""
        self._after = after
        if not self._connected:
            self._settle()
        elif self._drained is None:
            drained = self._drained = threading.Event()

            def done() -> None:
                self.services.call_soon(self._on_drained)
                drained.set()  # last: who waits for it may end the loop next

            self.disconnect(done)

    def _on_drained(self) -> None:
        with self.services.lock:
            self._drained = None
            self._connected = False
            if not self._closed:
                self._settle()
                self._schedule()

    def _settle(self) -> None:
        if self._after is Step.RESTART:
            self._offer()
        elif self._after is Step.CLOSE:
            self._switch(XenbusState.Closed)

    def _failed(self, error: Exception) -> None:
        """Say what was wrong, on the terminal and where xenstore has room for it, and end the connection."""
        with self.services.lock:
            if self._closed or self._parked or self._drained is not None:
                return
            self._failures += 1
            report = log.note if self._failures == 1 else log.debug
            report(f"domain {self.domid}: {self.kind} {self.params.devid} is closed: {error}")
            self.services.store.write(self.params.error_path, f"{error}"[:_MAX_ERROR])
            self._switch(XenbusState.Closing)
            if self._connected:
                self._drain(Step.CLOSING)

    def _switch(self, state: XenbusState) -> None:
        self.state = state
        self.write({"state": state.value})
