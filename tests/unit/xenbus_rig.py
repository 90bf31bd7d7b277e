"""A host for backends without KVM: a store, a loop that is turned by hand, and one guest that grants pages and sends events."""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import contextmanager
from struct import pack_into
from typing import TYPE_CHECKING, Any

from xenpy.abi.grant_table import GRANT_ENTRY_SIZE_V1, GTF_permit_access, GTF_readonly
from xenpy.abi.ring import (
    INDEX_MASK,
    SRING_HEADER_SIZE,
    SRING_REQ_EVENT,
    SRING_REQ_PROD,
    SRING_RSP_EVENT,
    SRING_RSP_PROD,
)
from xenpy.abi.xenbus import XenbusState
from xenpy.devices.ring import ring_entries
from xenpy.errors import Errno, XenError
from xenpy.framepool import FramePool
from xenpy.memory import PAGE_SHIFT, PAGE_SIZE, GuestMemory
from xenpy.pv.gnttab import GrantMapping, GrantTable
from xenpy.pv.xenstore import Xenstore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from xenpy.devices.xenbus import Backend
    from xenpy.pv.gnttab.pins import Pin

DOMID = 5
PAGES = 2048
FIRST_GREF = 8
PATIENCE = 60.0


class FakeServices:
    """What a backend asks of the host, and the guest it asks about; `pump` turns the loop."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.store = Xenstore(lock=self.lock)
        self.store.add_domain(DOMID)
        self.store.introduce(DOMID)
        self.memory = GuestMemory()
        self.memory.add_ram(0, PAGES * PAGE_SIZE)
        self.pool = FramePool(64)
        self.gnttab = GrantTable(DOMID, self.pool, self.memory, lookup=self._no_other)
        self.events: dict[int, int] = {}
        """The guest's port -> how many events it got."""
        self.mapped = 0
        """How many grants have been mapped so far."""
        self._count_uses()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._soon: deque[Callable[[], None]] = deque()
        self._next_gref = FIRST_GREF
        self._next_gfn = 0
        self._next_port = 10

    def _count_uses(self) -> None:
        pins = self.gnttab._pins
        pin = pins.pin

        def counted(*args: Any, **options: Any) -> Pin:
            self.mapped += 1
            return pin(*args, **options)

        vars(pins)["pin"] = counted
        self.gnttab.make_use = counted

    def _no_other(self, domid: int) -> GrantTable:
        raise XenError(Errno.ESRCH, f"no domain {domid}")

    # -- Services -----------------------------------------------------------------------------------------------------

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._soon.append(callback)

    def map_page(self, domid: int, gref: int, *, readonly: bool = False) -> GrantMapping:
        assert domid == DOMID
        return self.gnttab.map_page(0, gref, readonly=readonly)

    def bind(self, domid: int, port: int, handler: Callable[[], None]) -> int:
        if domid != DOMID or port not in self.events or port in self._handlers:
            raise XenError(Errno.EINVAL, f"port {port} awaits no binding")
        self._handlers[port] = handler
        handler()
        return port

    def wire(self, port: int, wake: int, notify: int) -> None:
        """Have no kernel that would pass events."""

    def unbind(self, port: int) -> None:
        del self._handlers[port]

    def notify(self, port: int) -> None:
        with self.lock:
            if port in self.events:
                self.events[port] += 1

    # -- the loop -----------------------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Make the calls that are due."""
        while self._soon:
            self._soon.popleft()()

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Turn the loop until a condition holds; fail with `what` if it never does."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"never came about: {what}"
            self.pump()
            time.sleep(0.0005)
        self.pump()

    # -- what the guest does ------------------------------------------------------------------------------------------

    def page(self) -> tuple[int, memoryview]:
        """Return the gfn of a fresh page and a view of it."""
        gfn = self._next_gfn
        self._next_gfn += 1
        return gfn, self.memory.view(gfn << PAGE_SHIFT, PAGE_SIZE)

    def grant(self, gfn: int, *, readonly: bool = False) -> int:
        """Grant a page to domain 0 and return the grant reference."""
        gref = self._next_gref
        self._next_gref += 1
        self.regrant(gref, gfn, readonly=readonly)
        return gref

    def regrant(self, gref: int, gfn: int, *, readonly: bool = False) -> None:
        """Grant a page by a reference that was used before."""
        flags = GTF_permit_access | (GTF_readonly if readonly else 0)
        pack_into("<HHI", self._entry(gref), 0, flags, 0, gfn)

    def revoke(self, gref: int) -> None:
        self._entry(gref)[:2] = bytes(2)

    def in_use(self, gref: int) -> bool:
        """Tell whether the guest sees a grant in use."""
        return bool(self._entry(gref)[0] & 0x18)

    def _entry(self, gref: int) -> memoryview:
        page, index = divmod(gref, PAGE_SIZE // GRANT_ENTRY_SIZE_V1)
        with self.lock:
            frame = self.gnttab.frame(page)
        return self.pool.view(frame)[index * GRANT_ENTRY_SIZE_V1 : (index + 1) * GRANT_ENTRY_SIZE_V1]

    def port(self) -> int:
        """Allocate an event channel for the backend to bind to."""
        self._next_port += 1
        self.events[self._next_port] = 0
        return self._next_port

    def send(self, port: int) -> None:
        """Send an event to the backend, if it is bound."""
        with self.lock:
            handler = self._handlers.get(port)
            if handler is not None:
                handler()

    @property
    def bound(self) -> list[int]:
        """Return the guest's ports that a backend is bound to."""
        return sorted(self._handlers)

    def close(self) -> None:
        self.gnttab.destroy()
        self.memory.close()
        self.pool.close()


@contextmanager
def fake_services() -> Iterator[FakeServices]:
    """Make a host and its guest."""
    services = FakeServices()
    try:
        yield services
    finally:
        services.close()


class FakeDriver:
    """The guest's end of a device in xenstore."""

    def __init__(self, services: FakeServices, backend: Backend) -> None:
        self.services = services
        self.backend = backend

    @property
    def path(self) -> str:
        return self.backend.params.frontend_path

    def write(self, nodes: Mapping[str, str | int]) -> None:
        for name, value in nodes.items():
            self.services.store.write(f"{self.path}/{name}", value)

    def switch(self, state: XenbusState) -> None:
        """Change the frontend's state and let the backend act on it."""
        self.write({"state": state.value})
        self.services.pump()

    def theirs(self, name: str) -> str | None:
        """Return a node of the backend's."""
        return self.services.store.get(f"{self.backend.params.backend_path}/{name}")

    @property
    def backend_state(self) -> XenbusState:
        return XenbusState(int(self.theirs("state") or 0))

    def await_state(self, state: XenbusState) -> None:
        self.services.until(lambda: self.backend_state is state, f"backend in {state.name}")


class FrontRing:
    """The frontend's end of a shared ring, which it may also misuse: `words` are the four indices."""

    def __init__(self, pages: list[memoryview], entry_size: int, *, start: int = 0) -> None:
        self.pages = pages
        self.entry_size = entry_size
        self.entries = ring_entries(len(pages), entry_size)
        self.words = pages[0].cast("I")
        for index in (SRING_REQ_PROD, SRING_RSP_PROD):
            self.words[index] = start
        for index in (SRING_REQ_EVENT, SRING_RSP_EVENT):
            self.words[index] = (start + 1) & INDEX_MASK
        self.req_prod = self.rsp_cons = start

    @property
    def room(self) -> int:
        return self.entries - (self.req_prod - self.rsp_cons & INDEX_MASK)

    def _offset(self, index: int) -> int:
        return SRING_HEADER_SIZE + index % self.entries * self.entry_size

    def write_at(self, offset: int, data: bytes) -> None:
        """Write at an offset of the ring's pages."""
        for place, byte in enumerate(data, offset):
            self.pages[place // PAGE_SIZE][place % PAGE_SIZE] = byte

    def read_at(self, offset: int, size: int) -> bytes:
        return bytes(self.pages[place // PAGE_SIZE][place % PAGE_SIZE] for place in range(offset, offset + size))

    def put(self, request: bytes) -> None:
        """Write a request, which the backend sees after `push`."""
        assert self.room
        self.write_at(self._offset(self.req_prod), request)
        self.req_prod = (self.req_prod + 1) & INDEX_MASK

    def push(self) -> bool:
        """Show the backend the requests; tell whether it wants an event."""
        old, self.words[SRING_REQ_PROD] = self.words[SRING_REQ_PROD], self.req_prod
        return (self.req_prod - self.words[SRING_REQ_EVENT] & INDEX_MASK) < (self.req_prod - old & INDEX_MASK)

    def take(self, size: int) -> list[bytes]:
        """Return the responses that have come, `size` bytes each, and ask for an event with the next one.

        No more than the ring holds: a test may have put nonsense where the backend counts them.
        """
        responses: list[bytes] = []
        while self.rsp_cons != self.words[SRING_RSP_PROD] and len(responses) < self.entries:
            responses.append(self.read_at(self._offset(self.rsp_cons), size))
            self.rsp_cons = (self.rsp_cons + 1) & INDEX_MASK
        self.words[SRING_RSP_EVENT] = (self.rsp_cons + 1) & INDEX_MASK
        return responses
