"""A block device in xenbus: what it offers, and what a frontend has made of that.

Ref: xen/include/public/io/blkif.h, docs/misc/xenstore-paths.pandoc
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.abi.blkif import LAYOUTS, NATIVE_PROTOCOL, SECTOR_SHIFT, SECTOR_SIZE, VDISK
from xenpy.abi.xenbus import XenbusState
from xenpy.devices.vbd.connection import Connection, Plan, RingPlace, Threads
from xenpy.devices.vbd.requests import MAX_INDIRECT_SEGMENTS
from xenpy.devices.xenbus import Backend, Nodes
from xenpy.errors import FrontendError

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.config.disk import DiskConfig
    from xenpy.devices.isolation.grants import IsolationServices
    from xenpy.devices.vbd.backing import Backing
    from xenpy.devices.vbd.frozen import FrozenDisk

MAX_QUEUES: Final = 4
MAX_RING_ORDER: Final = 4
"""Pages of a ring, as a power of two."""


class VbdBackend(Backend):
    """A disk of a guest's; `isolated` has it served by a process of its own, if its medium can go there."""

    kind = "vbd"

    def __init__(
        self, services: IsolationServices, domid: int, disk: DiskConfig, backing: Backing, *, isolated: bool = False
    ) -> None:
        super().__init__(services, domid, disk.devid)
        self._services = services
        self._disk = disk
        self._isolated = isolated
        self.backing = backing
        self.connection: Connection | None = None
        """What serves the frontend, while one is connected."""
        if isolated:
            from xenpy.devices.isolation.process import TEMPLATE

            TEMPLATE.hold()

    @property
    def _can_discard(self) -> bool:
        return self.backing.can_discard and self._disk.discard is not False

    def backend_nodes(self) -> Nodes:
        """Return what libxl writes for a disk."""
        disk = self._disk
        return {
            "dev": disk.vdev,
            "params": disk.target,
            "type": disk.backendtype.value if disk.backendtype else "phy",
            "mode": "w" if disk.writable else "r",
            "device-type": "cdrom" if disk.cdrom else "disk",
            "removable": int(disk.cdrom),
            "bootable": 1,
            "discard-enable": int(disk.discard is not False),
            "direct-io-safe": int(disk.direct_io_safe),
        }

    def frontend_nodes(self) -> Nodes:
        """Return what libxl writes for a disk."""
        disk = self._disk
        kind = "cdrom" if disk.cdrom else "disk"
        return {"virtual-device": disk.devid, "device-type": kind, "trusted": int(disk.trusted)}

    def offer(self) -> Nodes:
        """Return the features; what depends on the medium as well, for a frontend that looks early."""
        nodes: Nodes = {
            "feature-barrier": 1,
            "feature-flush-cache": 1,
            "feature-persistent": 1,
            "feature-max-indirect-segments": MAX_INDIRECT_SEGMENTS,
            "max-ring-page-order": MAX_RING_ORDER,
            "max-ring-pages": 1 << MAX_RING_ORDER,
            "multi-queue-max-queues": MAX_QUEUES,
            "feature-discard": int(self._can_discard),
        }
        if self._can_discard:
            nodes |= {"discard-granularity": self.backing.granularity, "discard-alignment": 0, "discard-secure": 0}
        return nodes | self._properties()

    def _properties(self) -> Nodes:
        info = VDISK(0)
        if self._disk.cdrom:
            info |= VDISK.CDROM | VDISK.REMOVABLE
        if not self._disk.writable:
            info |= VDISK.READONLY
        size = self.backing.size
        # A size that is no multiple of the physical block would contradict it.
        physical = self.backing.granularity if size % self.backing.granularity == 0 else SECTOR_SIZE
        return {
            "sectors": size >> SECTOR_SHIFT,
            "sector-size": SECTOR_SIZE,
            "physical-sector-size": physical,
            "info": int(info),
        }

    def connect(self) -> Nodes:
        """Map the frontend's rings and have them served. Raises FrontendError, XenError, GrantError."""
        frontend = self.frontend
        protocol = frontend.text("protocol", NATIVE_PROTOCOL)
        if protocol not in LAYOUTS:
            raise FrontendError(f"{frontend.path}: protocol is none of {', '.join(LAYOUTS)}")
        count = frontend.number("multi-queue-num-queues", 1, low=1, high=MAX_QUEUES)
        queues = [frontend] if count == 1 else [frontend.below(f"queue-{index}") for index in range(count)]
        order = self._ring_order()
        names = [f"ring-ref{index}" for index in range(1 << order)] if order else ["ring-ref"]
        rings = [RingPlace([queue.gref(name) for name in names], queue.port("event-channel")) for queue in queues]
        self.connection = self._connect_to(Plan(protocol, rings, frontend.flag("feature-persistent")))
        self.connection.start()
        return self._properties()

    def _connect_to(self, plan: Plan) -> Connection:
        name = f"vbd {self.domid}/{self.params.devid}"
        # A process of its own could not see what a private copy of the guest's RAM holds.
        can_share = self._isolated and not self._services.domain(self.domid).memory.is_private
        parcel = self.backing.parcel() if can_share else None
        if parcel is None:
            return Threads(self.services, self.domid, name, plan, self.backing, self.fail)
        from xenpy.devices.vbd.isolated import Isolated

        return Isolated(self._services, self.domid, name, plan, parcel, self.fail)

    def freeze(self) -> FrozenDisk:
        """Return the medium as it is now and stays; this disk goes on with an overlay of it. While parked. Raises HostError."""
        from xenpy.devices.vbd.frozen import FrozenDisk

        frozen = FrozenDisk(self.backing)
        self.backing = frozen.open()
        return frozen

    def _ring_order(self) -> int:
        order = self.frontend.number("ring-page-order", 0, high=MAX_RING_ORDER)
        pages = self.frontend.number("num-ring-pages", 1 << order, low=1, high=1 << MAX_RING_ORDER)
        if pages != 1 << order and (order or pages & (pages - 1)):
            raise FrontendError(f"{self.frontend.path}: {pages} ring pages of order {order}")
        return pages.bit_length() - 1

    def disconnect(self, done: Callable[[], None]) -> None:
        """Have the requests under way finished and no more begun."""
        assert self.connection is not None
        self.connection.stop(done)
        self.connection = None

    def resize(self) -> bool:
        """Look at the medium's size anew, and tell the guest if it changed; return whether it did."""
        with self.services.lock:
            changed = self.backing.refresh()
            if changed:
                self.write(self._properties())
                if self.state is XenbusState.Connected:
                    self.write(
                        {"state": XenbusState.Connected.value}
                    )  # the frontend looks again when the node is written
        return changed

    def release(self) -> None:
        """Close the medium."""
        self.backing.close()
        if self._isolated:
            from xenpy.devices.isolation.process import TEMPLATE

            TEMPLATE.drop()
