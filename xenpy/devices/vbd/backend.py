"""A block device in xenbus: what it offers, and what a frontend has made of that.

Ref: xen/include/public/io/blkif.h, docs/misc/xenstore-paths.pandoc
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from xenpy.abi.blkif import LAYOUTS, NATIVE_PROTOCOL, SECTOR_SHIFT, SECTOR_SIZE, VDISK
from xenpy.abi.xenbus import XenbusState
from xenpy.devices.vbd.connection import Connection, Plan, RingPlace, Threads
from xenpy.devices.vbd.requests import MAX_INDIRECT_SEGMENTS
from xenpy.devices.xenbus import Backend, Nodes
from xenpy.errors import FrontendError, XenError

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.config.disk import DiskConfig
    from xenpy.devices.isolation.grants import IsolationServices
    from xenpy.devices.trouble import Ask
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
        self._plan: Plan | None = None
        self._ask: Ask | None = None
        self._moving = False  # on the way from a process to threads, to another medium, or to nothing
        self._inserted: list[tuple[DiskConfig, Backing]] = []
        """Media that wait for requests under way, the last of which stays."""
        self._closing: list[threading.Thread] = []
        """What closes media that have been taken out."""
        self._on_moved: list[Callable[[], None]] = []
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
        self._plan = Plan(protocol, rings, frontend.flag("feature-persistent"))
        self._serve(self._plan)
        return self._properties()

    def _serve(self, plan: Plan) -> None:
        self.connection = self._connect_to(plan)
        if isinstance(self.connection, Threads):
            self.connection.set_ask(self._ask)
        self.connection.start()

    def trouble(self, ask: Ask | None) -> bool:
        """Have somebody asked what goes wrong with each request, or nobody; return that this can be. From any thread.

        A process cannot ask: the disk is served in threads from then on, until it is connected anew, taking over the rings as they are.
        """
        with self.services.lock:
            self._ask = ask
            if isinstance(self.connection, Threads):
                self.connection.set_ask(ask)
            elif ask is not None and self.connection is not None:
                connection, self.connection = self.connection, None
                self._moving = True
                connection.stop(self._moved)
        return True

    def kill(self) -> bool:
        """Kill the process that serves the disk, or that has its image; another one takes over. Tell whether there is one."""
        with self.services.lock:
            if self.connection is not None and self.connection.kill():
                return True
        from xenpy.devices.vbd.qemu import QemuImage

        return isinstance(self.backing, QemuImage) and self.backing.kill()

    def insert(self, disk: DiskConfig, backing: Backing) -> None:
        """Put another medium into the drive, which closes it in the end, or an EmptyDrive for none; the guest is told.

        The requests under way are done with the one before; a drive that is parked has it when it is not any more. From any thread.
        """
        with self.services.lock:
            if self._closed:
                self._close_soon(backing)
                return
            self._inserted.append((disk, backing))
            if self.connection is not None:
                connection, self.connection = self.connection, None
                self._moving = True
                connection.stop(self._moved)
            elif not self._moving and not self._parked:
                self._change_media()

    def _change_media(self) -> None:
        """Have what was inserted last be what there is; under the lock, while nobody uses what there was."""
        inserted, self._inserted = self._inserted, []
        for disk, backing in inserted:
            self._close_soon(self.backing)
            self._disk, self.backing = disk, backing
        if inserted and not self._closed:
            nodes = self.backend_nodes()
            self._tell({name: nodes[name] for name in ("params", "type")} | self._properties())

    def _close_soon(self, backing: Backing) -> None:
        """Close a medium, in a thread: an image server writes back what it has; under the lock."""
        self._closing = [thread for thread in self._closing if thread.is_alive()]
        name = f"vbd {self.domid}/{self.params.devid} closes"
        self._closing.append(threading.Thread(target=backing.close, name=name, daemon=True))
        self._closing[-1].start()

    def unpark(self) -> None:
        """Go on where `park` left off, or with the medium that was inserted since."""
        with self.services.lock:
            if not self._closed and not self._moving:
                self._change_media()
            super().unpark()

    def _tell(self, nodes: Nodes) -> None:
        """Write what has changed, and have a frontend that is connected look at it."""
        self.write(nodes)
        if self.state is XenbusState.Connected:
            self.write({"state": XenbusState.Connected.value})  # it looks when the node is written

    def _moved(self) -> None:
        """Go on in threads, with another medium, or with what has come in the way; under the lock."""
        self._moving = False
        self._change_media()
        on_moved, self._on_moved = self._on_moved, []
        for done in on_moved:
            done()
        if self._plan is not None:
            self.services.call_soon(self._serve_again)

    def _serve_again(self) -> None:
        with self.services.lock:
            if self.connection is None and self._plan is not None and not self._closed:
                try:
                    self._serve(self._plan)
                except (FrontendError, XenError) as error:
                    self.fail(error)

    def _connect_to(self, plan: Plan) -> Connection:
        name = f"vbd {self.domid}/{self.params.devid}"
        # A process of its own could not see what a private copy of the guest's RAM holds, nor ask what goes wrong with requests.
        can_share = self._isolated and self._ask is None and not self._services.domain(self.domid).memory.is_private
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
        connection, self.connection, self._plan = self.connection, None, None
        if connection is None and not self._moving:
            done()
            return
        self._moving = True
        self._on_moved.append(done)
        if connection is not None:
            connection.stop(self._moved)

    def resize(self, size: int | None = None) -> bool:
        """Look at the medium's size anew, and tell the guest if it changed; return whether it did.

        With a `size` in bytes, have the medium made that large before. Raises ConfigError, HostError; the caller must not hold the lock.
        """
        if size is not None:
            self.backing.grow(size)
        with self.services.lock:
            changed = self.backing.refresh()
            if changed:
                self._tell(self._properties())
        return changed

    def release(self) -> None:
        """Close the medium."""
        for medium in (self.backing, *(backing for _, backing in self._inserted)):
            medium.close()
        for thread in self._closing:
            thread.join()
        if self._isolated:
            from xenpy.devices.isolation.process import TEMPLATE

            TEMPLATE.drop()
