"""A block frontend, by the rules unless told otherwise, and disks to connect it to."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from xenbus_rig import DOMID, FakeDriver, FrontRing, fake_services

from xenpy.abi.blkif import BLKIF_OP, LAYOUTS, SECTOR_SIZE, SEGMENT, SEGMENTS_PER_INDIRECT_PAGE
from xenpy.abi.xenbus import XenbusState
from xenpy.config.disk import DiskConfig
from xenpy.devices.vbd.backend import VbdBackend
from xenpy.devices.vbd.image import open_disk
from xenpy.memory import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from xenbus_rig import FakeServices

    from xenpy.devices.vbd.backing import Backing

XVDA = 202 << 8
FULL = (0, 7)


class Buffer(NamedTuple):
    """A granted page; `first` and `last` are the sectors that a request uses."""

    gref: int
    view: memoryview
    first: int
    last: int

    @property
    def data(self) -> memoryview:
        return self.view[self.first * SECTOR_SIZE : (self.last + 1) * SECTOR_SIZE]


class Queue:
    """One ring of a frontend's."""

    def __init__(self, services: FakeServices, protocol: str, order: int, *, persistent: bool) -> None:
        self.services = services
        self.readonly = not persistent  # persistent grants are writable, whatever they are for
        self.layout = LAYOUTS[protocol]
        pages = [services.page() for _ in range(1 << order)]
        self.grefs = [services.grant(gfn) for gfn, _ in pages]
        self.port = services.port()
        self.ring = FrontRing([view for _, view in pages], self.layout.entry_size)
        self.answers: dict[int, tuple[int, int]] = {}
        self._next_id = 1 << 40

    def nodes(self) -> dict[str, int]:
        """Return what describes the queue in xenstore."""
        refs = {"ring-ref": self.grefs[0]} if len(self.grefs) == 1 else {}
        refs |= {f"ring-ref{index}": gref for index, gref in enumerate(self.grefs)} if len(self.grefs) > 1 else {}
        return {**refs, "event-channel": self.port}

    # -- requests -----------------------------------------------------------------------------------------------------

    def new_id(self) -> int:
        self._next_id += 1
        return self._next_id

    def transfer(self, op: int, sector: int, buffers: Sequence[Buffer]) -> int:
        """Put a read, write or barrier into the ring and return its id."""
        request_id = self.new_id()
        segments = b"".join(SEGMENT.pack(buffer.gref, buffer.first, buffer.last) for buffer in buffers)
        self.ring.put(self.layout.request.pack(op, len(buffers), 0, request_id, sector) + segments)
        return request_id

    def indirect(self, op: int, sector: int, buffers: Sequence[Buffer]) -> int:
        """Put an indirect read or write into the ring and return its id."""
        request_id = self.new_id()
        grefs = []
        for start in range(0, len(buffers), SEGMENTS_PER_INDIRECT_PAGE):
            gfn, view = self.services.page()
            for index, buffer in enumerate(buffers[start : start + SEGMENTS_PER_INDIRECT_PAGE]):
                SEGMENT.pack_into(view, index * SEGMENT.size, buffer.gref, buffer.first, buffer.last)
            grefs.append(self.services.grant(gfn, readonly=self.readonly))
        grefs += [0] * (8 - len(grefs))
        self.ring.put(self.layout.indirect.pack(BLKIF_OP.INDIRECT, op, len(buffers), request_id, sector, 0, *grefs))
        return request_id

    def discard(self, sector: int, nr_sectors: int) -> int:
        """Put a discard into the ring and return its id."""
        request_id = self.new_id()
        self.ring.put(self.layout.discard.pack(BLKIF_OP.DISCARD, 0, 0, request_id, sector, nr_sectors))
        return request_id

    def kick(self) -> None:
        """Show the backend what was put, and send an event if it wants one."""
        if self.ring.push():
            self.services.send(self.port)

    def collect(self) -> None:
        """Take in the responses that are there: id -> (operation, status)."""
        for response in self.ring.take(self.layout.response.size):
            request_id, operation, status = self.layout.response.unpack(response)
            assert request_id not in self.answers
            self.answers[request_id] = (operation, status)

    def wait(self, *ids: int) -> list[int]:
        """Return the statuses of requests, when all have been answered."""
        self.kick()

        def answered() -> bool:
            self.collect()
            return self.answers.keys() >= set(ids)

        self.services.until(answered, f"answers to {ids}")
        return [self.answers[request_id][1] for request_id in ids]

    def buffer(self, data: bytes | None = None, *, readonly: bool = False, sectors: tuple[int, int] = FULL) -> Buffer:
        """Grant a fresh page whose named sectors begin with `data`."""
        gfn, view = self.services.page()
        if data is not None:
            view[sectors[0] * SECTOR_SIZE : sectors[0] * SECTOR_SIZE + len(data)] = data
        return Buffer(self.services.grant(gfn, readonly=readonly), view, *sectors)

    def write(self, sector: int, data: bytes, op: int = BLKIF_OP.WRITE) -> int:
        """Write whole sectors by one request and return its status."""
        pieces = [data[start : start + PAGE_SIZE] for start in range(0, len(data), PAGE_SIZE)]
        buffers = [self.buffer(piece, readonly=self.readonly, sectors=(0, len(piece) // 512 - 1)) for piece in pieces]
        return self.wait(self.transfer(op, sector, buffers))[0]

    def read(self, sector: int, sectors: int = 8) -> bytes | int:
        """Read up to 8 sectors and return them, or the status if it is not 0."""
        buffer = self.buffer(sectors=(0, sectors - 1))
        status = self.wait(self.transfer(BLKIF_OP.READ, sector, [buffer]))[0]
        return status or bytes(buffer.data)

    def simple(self, op: int) -> int:
        """Make a request without data and return its status."""
        return self.wait(self.transfer(op, 0, []))[0]


class BlkFrontend(FakeDriver):
    """A guest's block driver; `queues` exist after `connect`."""

    backend: VbdBackend
    queues: list[Queue]

    def connect(
        self,
        *,
        queues: int = 1,
        order: int = 0,
        protocol: str = "x86_64-abi",
        persistent: bool = False,
        nodes: Mapping[str, str | int] | None = None,
    ) -> Queue:
        """Go through the handshake and return the first queue; `nodes` are written last."""
        assert self.backend_state is XenbusState.InitWait
        self.queues = [Queue(self.services, protocol, order, persistent=persistent) for _ in range(queues)]
        self.write({"protocol": protocol, "feature-persistent": int(persistent)})
        if order:
            self.write({"ring-page-order": order, "num-ring-pages": 1 << order})
        if queues == 1:
            self.write(dict(self.queues[0].nodes()))
        else:
            self.write({"multi-queue-num-queues": queues})
            for index, queue in enumerate(self.queues):
                self.write({f"queue-{index}/{name}": value for name, value in queue.nodes().items()})
        self.write(nodes or {})
        self.switch(XenbusState.Initialised)
        return self.queues[0]


def disk_of(target: object, **fields: Any) -> DiskConfig:
    """Return a configuration as disk= would give it."""
    return DiskConfig(target=str(target), vdev="xvda", devid=XVDA, **fields)


@contextmanager
def plugged(disk: DiskConfig, *, backing: Backing | None = None, ephemeral: bool = False) -> Iterator[BlkFrontend]:
    """Plug a disk into a guest whose driver has not looked at it yet."""
    with fake_services() as services:
        backend = VbdBackend(services, DOMID, disk, backing or open_disk(disk, ephemeral=ephemeral))
        backend.start()
        services.pump()
        try:
            yield BlkFrontend(services, backend)
        finally:
            backend.close()
            assert not services.bound
            assert not services.gnttab.describe()[1:]
