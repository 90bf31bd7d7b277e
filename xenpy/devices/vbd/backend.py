"""A block device in xenbus: what it offers, and the queues of a connection, each with a thread.

Ref: xen/include/public/io/blkif.h, docs/misc/xenstore-paths.pandoc
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from xenpy.abi.blkif import LAYOUTS, NATIVE_PROTOCOL, SECTOR_SHIFT, SECTOR_SIZE, VDISK, BlkifLayout
from xenpy.abi.xenbus import XenbusState
from xenpy.devices.vbd.pages import GrantedPages
from xenpy.devices.vbd.queue import BlockQueue
from xenpy.devices.vbd.requests import MAX_INDIRECT_SEGMENTS, BlockRing
from xenpy.devices.xenbus import Backend, Nodes, Services
from xenpy.errors import FrontendError

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.config.disk import DiskConfig
    from xenpy.devices.frontend import FrontendNodes
    from xenpy.devices.vbd.backing import Backing
    from xenpy.pv.gnttab import GrantMapping

MAX_QUEUES: Final = 4
MAX_RING_ORDER: Final = 4
"""Pages of a ring, as a power of two."""
_PERSISTENT_SEGMENTS: Final = 32
"""Mappings kept for each entry of a ring: what Linux's frontend keeps granted for a request."""


class VbdBackend(Backend):
    """A disk of a guest's."""

    kind = "vbd"

    def __init__(self, services: Services, domid: int, disk: DiskConfig, backing: Backing) -> None:
        super().__init__(services, domid, disk.devid)
        self._disk = disk
        self.backing = backing
        self._queues: list[_Worker] = []

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
        """Map the frontend's rings and start a thread for each. Raises FrontendError, XenError, GrantError."""
        frontend = self.frontend
        layout = LAYOUTS.get(frontend.text("protocol", NATIVE_PROTOCOL))
        if layout is None:
            raise FrontendError(f"{frontend.path}: protocol is none of {', '.join(LAYOUTS)}")
        count = frontend.number("multi-queue-num-queues", 1, low=1, high=MAX_QUEUES)
        queues = [frontend] if count == 1 else [frontend.below(f"queue-{index}") for index in range(count)]
        order = self._ring_order()
        persistent = frontend.flag("feature-persistent")
        with ExitStack() as undo:
            workers = []
            for queue in queues:
                worker = _Worker(self, queue, layout, order, persistent=persistent)
                undo.callback(worker.let_go)
                workers.append(worker)
            self._queues = workers
            undo.pop_all()
        for worker in workers:
            worker.start()
        return self._properties()

    def _ring_order(self) -> int:
        order = self.frontend.number("ring-page-order", 0, high=MAX_RING_ORDER)
        pages = self.frontend.number("num-ring-pages", 1 << order, low=1, high=1 << MAX_RING_ORDER)
        if pages != 1 << order and (order or pages & (pages - 1)):
            raise FrontendError(f"{self.frontend.path}: {pages} ring pages of order {order}")
        return pages.bit_length() - 1

    def disconnect(self, done: Callable[[], None]) -> None:
        """Have the threads end after the requests that they are at."""
        left = len(self._queues)

        def one_done() -> None:  # under the lock
            nonlocal left
            left -= 1
            if not left:
                done()

        for worker in self._queues:
            worker.stop(one_done)
        self._queues = []

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


class _Worker:
    """A queue's pages, port and thread; made under the lock."""

    def __init__(
        self, device: VbdBackend, nodes: FrontendNodes, layout: BlkifLayout, order: int, *, persistent: bool
    ) -> None:
        self._device = device
        services = self._services = device.services
        names = [f"ring-ref{index}" for index in range(1 << order)] if order else ["ring-ref"]
        self._wanted = threading.Event()
        self._stopping = False
        self._on_end: Callable[[], None] | None = None
        with ExitStack() as undo:
            mappings: list[GrantMapping] = [
                undo.enter_context(services.map_page(device.domid, nodes.gref(name))) for name in names
            ]
            ring = BlockRing([mapping.view for mapping in mappings], layout)
            undo.callback(ring.close)
            port = services.bind(device.domid, nodes.port("event-channel"), self._wanted.set)
            undo.callback(services.unbind, port)
            limit = ring.ring.entries * _PERSISTENT_SEGMENTS if persistent else 0
            pages = GrantedPages(services, device.domid, persistent=limit)
            undo.callback(pages.close)
            self._queue = BlockQueue(services, ring, pages, device.backing, lambda: services.notify(port))
            self._resources = undo.pop_all()

    def start(self) -> None:
        """Begin to serve."""
        params = self._device.params
        threading.Thread(target=self._run, name=f"vbd {params.domid}/{params.devid}", daemon=True).start()

    def stop(self, on_end: Callable[[], None]) -> None:
        """Have the thread end and let go of the guest's pages; then call `on_end`, under the lock."""
        self._on_end = on_end
        self._stopping = True
        self._wanted.set()

    def let_go(self) -> None:
        """Give back pages and port; under the lock, when no thread uses them."""
        self._resources.close()

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._wanted.wait()
                self._wanted.clear()
                self._queue.serve(lambda: self._stopping)
        except Exception as error:  # of the frontend's making, or a bug of ours that must cost one device only
            self._device.fail(error)
            while not self._stopping:
                self._wanted.wait()
                self._wanted.clear()
        with self._services.lock:
            self.let_go()
            if self._on_end is not None:
                self._on_end()
