"""The queues of a connected disk, served by threads of ours; see `isolated` for those that a process serves."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from xenpy.abi.blkif import LAYOUTS
from xenpy.devices.grants import HostGrants
from xenpy.devices.ring import ring_entries
from xenpy.devices.vbd.pages import GrantedPages
from xenpy.devices.vbd.queue import BlockQueue
from xenpy.devices.vbd.requests import BlockRing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xenpy.devices.trouble import Ask
    from xenpy.devices.vbd.backing import Backing
    from xenpy.devices.xenbus import Services

_PERSISTENT_SEGMENTS: Final = 32
"""Mappings kept for each entry of a ring: what Linux's frontend keeps granted for a request."""


class RingPlace(NamedTuple):
    """Where a queue's frontend has put its ring."""

    grefs: Sequence[int]
    port: int


class Plan(NamedTuple):
    """What a frontend has agreed to."""

    protocol: str
    rings: Sequence[RingPlace]
    persistent: bool

    @property
    def entries(self) -> int:
        """Return how many requests a ring holds."""
        return ring_entries(len(self.rings[0].grefs), LAYOUTS[self.protocol].entry_size)

    @property
    def kept(self) -> int:
        """Return how many mappings each queue keeps."""
        return self.entries * _PERSISTENT_SEGMENTS if self.persistent else 0


class Connection(Protocol):
    """What serves a connected frontend."""

    def start(self) -> None:
        """Begin to serve."""

    def kill(self) -> bool:
        """Kill the process that serves, if one does; tell whether."""

    def stop(self, done: Callable[[], None]) -> None:
        """Let go of all that is the guest's after the requests under way; then call `done`, under the lock."""


class Threads:
    """Serves each queue in a thread; made under the lock. `fail` hears of a frontend that breaks the protocol.

    Raises FrontendError, XenError, GrantError with nothing left mapped or bound.
    """

    def __init__(
        self, services: Services, domid: int, name: str, plan: Plan, backing: Backing, fail: Callable[[Exception], None]
    ) -> None:
        self._name = name
        self._workers: list[_Worker] = []
        with ExitStack() as undo:
            for place in plan.rings:
                worker = _Worker(services, domid, plan, place, backing, fail)
                undo.callback(worker.let_go)
                self._workers.append(worker)
            undo.pop_all()

    def start(self) -> None:
        """Start the threads, which look at once: a ring that is taken over may have requests whose events nobody heard."""
        for worker in self._workers:
            worker.look()
            threading.Thread(target=worker.run, name=self._name, daemon=True).start()

    def kill(self) -> bool:
        """Do nothing: there is no process."""
        return False

    def set_ask(self, ask: Ask | None) -> None:
        """Have somebody asked what goes wrong with each request, or nobody."""
        for worker in self._workers:
            worker.queue.ask = ask

    def stop(self, done: Callable[[], None]) -> None:
        """Have the threads end after the requests that they are at."""
        left = len(self._workers)

        def one_done() -> None:  # under the lock
            nonlocal left
            left -= 1
            if not left:
                done()

        for worker in self._workers:
            worker.stop(one_done)


class _Worker:
    """A queue's pages and port, and what its thread does."""

    def __init__(
        self,
        services: Services,
        domid: int,
        plan: Plan,
        place: RingPlace,
        backing: Backing,
        fail: Callable[[Exception], None],
    ) -> None:
        self._services = services
        self._fail = fail
        self._wanted = threading.Event()
        self._stopping = False
        self._on_end: Callable[[], None] | None = None
        with ExitStack() as undo:
            mappings = [undo.enter_context(services.map_page(domid, gref)) for gref in place.grefs]
            ring = BlockRing([mapping.view for mapping in mappings], LAYOUTS[plan.protocol])
            undo.callback(ring.close)
            port = services.bind(domid, place.port, self._wanted.set)
            undo.callback(services.unbind, port)
            pages = GrantedPages(HostGrants(services, domid), persistent=plan.kept)
            undo.callback(pages.close)
            self.queue = BlockQueue(ring, pages, backing, lambda: services.notify(port))
            self._resources = undo.pop_all()

    def look(self) -> None:
        """Have the thread look at the ring."""
        self._wanted.set()

    def stop(self, on_end: Callable[[], None]) -> None:
        """Have the thread end and let go of the guest's pages; then call `on_end`, under the lock."""
        self._on_end = on_end
        self._stopping = True
        self._wanted.set()

    def let_go(self) -> None:
        """Give back pages and port; under the lock, when no thread uses them."""
        self._resources.close()

    def run(self) -> None:
        """Serve until stopped."""
        try:
            while not self._stopping:
                self._wanted.wait()
                self._wanted.clear()
                self.queue.serve(lambda: self._stopping)
        except Exception as error:  # of the frontend's making, or a bug of ours that must cost one device only
            self._fail(error)
            while not self._stopping:
                self._wanted.wait()
                self._wanted.clear()
        with self._services.lock:
            self.let_go()
            if self._on_end is not None:
                self._on_end()
