"""The backend of a network interface: one for each vif= entry.

Ref: xen/include/public/io/netif.h, docs/misc/xenstore-paths.pandoc
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, ClassVar

from xenpy.devices.vif.control import Control
from xenpy.devices.vif.plan import MAX_QUEUES, read_plan
from xenpy.devices.xenbus import Backend, Nodes
from xenpy.errors import FrontendError, XenError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from xenpy.config.vif import VifConfig
    from xenpy.devices.trouble import Ask
    from xenpy.devices.vif.services import VifServices
    from xenpy.devices.vif.station import Listener, Station
    from xenpy.pv.xenstore.client import LocalWatch

_MULTICAST_WISH = "request-multicast-control"


class Vif(Backend):
    """A guest's interface, whose frames are moved by what `make_station` returns; that is the vif's to close."""

    kind: ClassVar[str] = "vif"

    def __init__(
        self, services: VifServices, domid: int, config: VifConfig, make_station: Callable[[Listener], Station]
    ) -> None:
        super().__init__(services, domid, config.devid)
        self.config = config
        self._blocked = self._filtering = False
        self._carrier = self._link_up = True
        self._control: Control | None = None
        self._control_due = False
        self._wishes: LocalWatch | None = None
        self._stack = ExitStack()
        self.station = make_station(self)

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
        """Map rings and bind ports, and have them served."""
        plan = read_plan(self.frontend)
        with ExitStack() as stack:
            self._control = Control(self.services, self.domid, plan, stack, self._schedule_control)
            self._filtering = self._wants_filter()
            self._apply()
            self.station.connect(plan, self._control.steering)
            path = f"{self.frontend.path}/{_MULTICAST_WISH}"
            wishes = self.services.store.watch(path, lambda _path, _token: self._hear_wishes())
            stack.callback(wishes.cancel)
            self._stack = stack.pop_all()
        self._schedule_control()
        return {}

    def disconnect(self, done: Callable[[], None]) -> None:
        """Unmap and unbind."""
        self._control = None
        self._stack.close()
        self.station.disconnect(done)

    def memory_frozen(self) -> None:
        """Have the host's loop move the frames from now on, on the same tap or user network."""
        with self.lock:
            self.station = self.station.in_loop()
            self._apply()

    def release(self) -> None:
        """Close the link."""
        self.station.close()

    def _wants_filter(self) -> bool:
        return self.frontend.text(_MULTICAST_WISH, "0").strip() not in ("0", "")

    def _hear_wishes(self) -> None:
        """Read, in the loop's thread, whether the guest wants group frames filtered."""

        def read() -> None:
            with self.lock:
                if self._control is not None:
                    self._filtering = self._wants_filter()
                    self._apply()

        self.services.call_soon(read)

    def _schedule_control(self) -> None:
        """Have the control ring looked at in the loop's thread; called under the lock."""
        if not self._control_due:
            self._control_due = True
            self.services.call_soon(self._serve_control)

    def _serve_control(self) -> None:
        with self.lock:
            self._control_due = False
            if self._control is None:
                return
            try:
                if self._control.serve():
                    self.station.steer()
            except (FrontendError, XenError) as error:
                self._control = None
                self.fail(error)

    # -- from the host's user -----------------------------------------------------------------------------------------

    @property
    def is_up(self) -> bool:
        """Tell whether the guest should see a carrier."""
        return self._carrier and self._link_up

    def set_carrier(self, *, up: bool) -> None:
        """Plug the cable in or out: no frames pass, and the guest is told, if its driver looks. From any thread."""
        with self.lock:
            self._carrier = up
            self._apply()
            self._tell_carrier()

    def block(self, *, blocked: bool = True) -> None:
        """Lose every frame in both directions, or no longer; the guest is told nothing. From any thread."""
        with self.lock:
            self._blocked = blocked
            self._apply()

    def kill(self) -> bool:
        """Kill the process that moves the frames; another one takes over. Tell whether there is one. From any thread."""
        with self.lock:
            return self.station.kill()

    def trouble(self, ask: Ask | None) -> bool:
        """Have somebody asked what goes wrong with each frame, or nobody; tell whether that can be. From any thread.

        A process cannot ask.
        """
        with self.lock:
            return self.station.trouble(ask)

    def _apply(self) -> None:
        self.station.set(is_open=self.is_up and not self._blocked, filtering=self._filtering)

    def link_changed(self, *, up: bool) -> None:
        """Tell the guest. From any thread."""
        with self.lock:
            self._link_up = up
            self._apply()
            self._tell_carrier()

    def _tell_carrier(self) -> None:
        if not self._closed:  # else the device's tree is gone, or about to be
            self.write({"carrier": int(self.is_up)})
