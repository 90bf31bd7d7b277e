"""The backend of a network interface: one for each vif= entry.

Ref: xen/include/public/io/netif.h, docs/misc/xenstore-paths.pandoc
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar, Protocol

from xenpy.devices.vif.connection import MAX_QUEUES, Connection
from xenpy.devices.vif.credit import Credit
from xenpy.devices.vif.offload import adapt
from xenpy.devices.xenbus import Backend, Nodes, Services
from xenpy.errors import FrontendError, XenError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from xenpy.config.vif import VifConfig
    from xenpy.devices.vif.frame import Frame
    from xenpy.devices.vif.link import Link
    from xenpy.devices.vif.switch import Switches
    from xenpy.loop import Deadline, Loop
    from xenpy.pv.xenstore.client import LocalWatch

_MULTICAST_WISH = "request-multicast-control"


class VifServices(Services, Protocol):
    """What a vif needs of the host beyond what every backend does."""

    @property
    def loop(self) -> Loop:
        """Return the host's loop."""

    @property
    def switches(self) -> Switches:
        """Return the switches between this host's guests."""


class Vif(Backend):
    """A guest's interface before `link`, which is the vif's to close."""

    kind: ClassVar[str] = "vif"

    def __init__(self, services: VifServices, domid: int, config: VifConfig, link: Link) -> None:
        super().__init__(services, domid, config.devid)
        self.config = config
        self.link = link
        self._loop = services.loop
        self._connection: Connection | None = None
        self._credit = Credit(config.rate, time.monotonic()) if config.rate else None
        self._credit_due: Deadline | None = None
        self._due = False  # a call of `_serve` is on its way
        self._blocked = False
        self._carrier = self._link_up = True
        self._wishes: LocalWatch | None = None
        self._released = False
        services.call_soon(self._attach)

    def _attach(self) -> None:
        with self.lock:
            if not self._released:
                self.link.attach(self)

    @property
    def lock(self) -> threading.RLock:
        """Return the host's lock."""
        return self.services.lock

    # -- xenbus -------------------------------------------------------------------------------------------------------

    def backend_nodes(self) -> Nodes:
        """Return what libxl writes about an interface."""
        config = self.config
        nodes: Nodes = {"mac": config.mac, "handle": config.devid, "type": "vif", "hotplug-status": "connected"}
        given = {"bridge": config.bridge, "script": config.script, "ip": " ".join(config.ip), "mtu": config.mtu}
        nodes.update({name: value for name, value in given.items() if value})
        if config.rate is not None:
            nodes["rate"] = f"{config.rate.bytes_per_interval},{config.rate.interval_us}"
        return nodes

    def frontend_nodes(self) -> Nodes:
        """Return what libxl tells the guest about its interface."""
        nodes: Nodes = {"mac": self.config.mac, "handle": self.config.devid, "trusted": int(self.config.trusted)}
        if self.config.mtu is not None:
            nodes["mtu"] = self.config.mtu
        return nodes

    def offer(self) -> Nodes:
        """Return what we can do."""
        return {
            "feature-rx-copy": 1,
            "feature-sg": 1,
            "feature-gso-tcpv4": 1,
            "feature-gso-tcpv6": 1,
            "feature-ipv6-csum-offload": 1,
            "feature-split-event-channels": 1,
            "feature-multicast-control": 1,
            "feature-dynamic-multicast-control": 1,
            "feature-ctrl-ring": 1,
            "multi-queue-max-queues": MAX_QUEUES,
            "carrier": int(self.is_up),
        }

    def connect(self) -> Nodes:
        """Map rings and bind ports."""
        connection = Connection(self.services, self.domid, self.frontend, self._schedule_service)
        self._connection = connection
        path = f"{self.frontend.path}/{_MULTICAST_WISH}"
        self._wishes = self.services.store.watch(path, lambda _path, _token: self._hear_wishes())
        self._schedule_service()
        return {}

    def disconnect(self, done: Callable[[], None]) -> None:
        """Unmap and unbind; nothing of the guest's is in use between calls from the loop."""
        if self._wishes is not None:
            self._wishes.cancel()
            self._wishes = None
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()
        done()

    def release(self) -> None:
        """Close the link."""
        with self.lock:
            self._released = True
            if self._credit_due is not None:
                self._credit_due.cancel()
            self.link.close()

    def _hear_wishes(self) -> None:
        """Read, in the loop's thread, whether the guest wants group frames filtered."""

        def read() -> None:
            with self.lock:
                if self._connection is not None:
                    self._connection.filtering = self.frontend.text(_MULTICAST_WISH, "0").strip() not in ("0", "")

        self.services.call_soon(read)

    # -- from the host's user -----------------------------------------------------------------------------------------

    @property
    def is_up(self) -> bool:
        """Tell whether the guest should see a carrier."""
        return self._carrier and self._link_up

    def set_carrier(self, *, up: bool) -> None:
        """Plug the cable in or out: no frames pass, and the guest is told, if its driver looks. From any thread."""
        with self.lock:
            self._carrier = up
            self._tell_carrier()

    def block(self, *, blocked: bool = True) -> None:
        """Lose every frame in both directions, or no longer; the guest is told nothing. From any thread."""
        with self.lock:
            self._blocked = blocked

    # -- frames -------------------------------------------------------------------------------------------------------

    def _schedule_service(self) -> None:
        """Have the rings looked at in the loop's thread, where links are; called under the lock."""
        if not self._due:
            self._due = True
            self.services.call_soon(self._serve)

    def _serve(self) -> None:
        with self.lock:
            self._due = False
            connection = self._connection
            if connection is None:
                return
            try:
                connection.serve_control()
                again = not self.link.busy and connection.transmit(self._send, self._may_send)
                connection.deliver(())  # what is left of a frame that there was no room for
                self.link.resume()
            except (FrontendError, XenError) as error:
                self._give_up(error)
                return
            if again and not self.link.busy:
                self._schedule_service()

    def _may_send(self, size: int) -> bool:
        if self.link.busy:
            return False  # `link_idle` goes on with it
        if self._credit is None:
            return True
        wait = self._credit.take(size, time.monotonic())
        if wait and self._credit_due is None:
            self._credit_due = self._loop.call_later(wait, self._on_credit)
        return not wait

    def _on_credit(self) -> None:
        with self.lock:
            self._credit_due = None
            self._schedule_service()

    def _send(self, frames: Sequence[Frame]) -> None:
        if self._blocked or not self.is_up:
            return
        offloads = self.link.offloads
        ready = [adapted for frame in frames for adapted in adapt(frame, offloads)]
        self.link.send(ready)

    def deliver(self, frames: Sequence[Frame]) -> int:
        """Give the guest frames; return how many of them, from the first on, need not be offered again."""
        if self._connection is None or self._blocked or not self.is_up:
            return len(frames)
        try:
            return self._connection.deliver(frames)
        except (FrontendError, XenError) as error:
            self._give_up(error)
            return len(frames)

    def _give_up(self, error: Exception) -> None:
        """Have nothing more to do with the frontend's rings, and say why."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self.fail(error)

    def link_idle(self) -> None:
        """Go on with what the guest wants sent."""
        self._schedule_service()

    def link_changed(self, *, up: bool) -> None:
        """Tell the guest."""
        self._link_up = up
        self._tell_carrier()

    def _tell_carrier(self) -> None:
        if not self._closed:  # else the device's tree is gone, or about to be
            self.write({"carrier": int(self.is_up)})
