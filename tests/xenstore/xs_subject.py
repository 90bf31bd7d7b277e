"""Our store with the same surroundings as the oracle: guests' rings in memory, no sockets, no threads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xs_peers import Client, GuestRing

from xenpy.errors import Errno, XenError
from xenpy.pv.xenstore import Ring, Xenstore
from xenpy.pv.xenstore.ring import PAGE_SIZE

if TYPE_CHECKING:
    from xenpy.pv.xenstore import Quotas


class DirectTransport:
    """A connection called directly."""

    def __init__(self, store: Xenstore) -> None:
        self._received = bytearray()
        self._connection = store.connect(on_output=self._fetch)

    def _fetch(self) -> None:
        self._received += self._connection.take_output()

    def send(self, data: bytes) -> None:
        self._connection.feed(data)

    def receive(self) -> bytes:
        if not self._received:
            raise TimeoutError("no answer")
        data = bytes(self._received)
        self._received.clear()
        return data

    def close(self) -> None:
        self._connection.close()


def _no_answer() -> None:
    raise TimeoutError("no answer")


class Subject:
    """A Xenstore with a hypervisor made of dicts."""

    def __init__(self, quotas: Quotas | None = None) -> None:
        self.store = Xenstore(quotas=quotas, hooks=self)
        self._shut_down: set[int] = set()
        self._pages: dict[int, memoryview] = {}
        self._rings: dict[int, Ring] = {}

    def connect(self, name: str) -> Client:
        return Client(DirectTransport(self.store), name)

    def create(self, domid: int) -> Client:
        self._pages[domid] = memoryview(bytearray(PAGE_SIZE))
        self.store.add_domain(domid)
        return Client(GuestRing(self._pages[domid], lambda: self._event(domid), _no_answer), f"dom{domid}")

    def port(self, domid: int) -> int:
        return domid

    def _event(self, domid: int) -> None:
        if domid in self._rings:
            self._rings[domid].on_event()

    def introduce(self, domid: int, _gfn: int, _port: int) -> None:
        """Connect a ring, as INTRODUCE asks."""
        if domid not in self._pages:
            raise XenError(Errno.ENOENT, f"no domain {domid}")
        if domid not in self._rings:
            self._rings[domid] = Ring(self.store, domid, self._pages[domid], lambda: None)
        self.store.introduce(domid, self._rings[domid].connection)
        self._rings[domid].on_event()

    def release(self, domid: int) -> None:
        """Disconnect a ring, as RELEASE asks."""
        self._rings.pop(domid).detach()

    def shutdown(self, domid: int) -> None:
        self._shut_down.add(domid)
        self._virq()

    def _virq(self) -> None:
        """Report every domain that is shut down, as a toolstack finds them when VIRQ_DOM_EXC comes."""
        with self.store.guard:  # one look at all domains, hence one event to whoever hears of several
            for domid in sorted(self._shut_down):
                self.store.domain_shutdown(domid)

    def resume(self, domid: int) -> None:
        self._shut_down.discard(domid)

    def destroy(self, domid: int) -> None:
        del self._pages[domid]
        if domid in self._rings:
            self._rings.pop(domid).detach()
        self._shut_down.discard(domid)
        with self.store.guard:
            self.store.forget(domid)
            self._virq()

    def close(self) -> None:
        for ring in self._rings.values():
            ring.detach()
