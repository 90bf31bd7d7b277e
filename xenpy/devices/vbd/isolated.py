"""The queues of a connected disk, served by a process that may die at any moment."""

from __future__ import annotations

import mmap
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

from xenpy import libc
from xenpy.abi.blkif import LAYOUTS
from xenpy.devices.isolation.grants import GrantServer, ram_offset
from xenpy.devices.isolation.keeper import Keeper, Line
from xenpy.devices.journal import Journal
from xenpy.devices.vbd.queue import MAX_VECTORS
from xenpy.devices.vbd.requests import MAX_INDIRECT_SEGMENTS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from xenpy.devices.isolation.grants import IsolationServices
    from xenpy.devices.vbd.backing import Parcel
    from xenpy.devices.vbd.connection import Plan, RingPlace


class Isolated:
    """Serves the queues; made under the lock. `fail` hears of a frontend that breaks the protocol, or that no process lives.

    Raises FrontendError, XenError, GrantError with nothing left mapped or bound.
    """

    def __init__(
        self,
        services: IsolationServices,
        domid: int,
        name: str,
        plan: Plan,
        parcel: Parcel,
        fail: Callable[[Exception], None],
    ) -> None:
        self._services = services
        self._domid = domid
        self._plan = plan
        self._lines: list[Line] = []
        self._rings: list[list[int]] = []
        self._journals: list[Journal] = []
        with ExitStack() as undo:
            for place in plan.rings:
                self._add(place, undo)
            self._resources = undo.pop_all()
        device = {
            "protocol": plan.protocol, "rings": self._rings, "entries": plan.entries, "kept": plan.kept,
            "kind": parcel.kind, "fields": parcel.fields,
        }  # fmt: skip

        def describe(fds: list[int]) -> Mapping[str, Any]:
            fds += map(os.dup, parcel.fds)
            return device

        self.keeper: Final = Keeper(
            services, domid, name, self._lines, service="vbd", device=describe,
            progress=lambda: [journal.answered for journal in self._journals], fail=fail,
        )  # fmt: skip

    def _add(self, place: RingPlace, undo: ExitStack) -> None:
        """Map a queue's ring, and make what its process will need."""
        services, plan = self._services, self._plan
        mappings = [undo.enter_context(services.map_page(self._domid, gref)) for gref in place.grefs]
        self._rings.append([ram_offset(services, self._domid, mapping) for mapping in mappings])
        entry_size = LAYOUTS[plan.protocol].entry_size
        size = Journal.size(plan.entries, entry_size)
        state = libc.memfd("xenpy-journal", size)
        undo.callback(os.close, state)
        journal = Journal(memoryview(mmap.mmap(state, size)), plan.entries, entry_size)
        undo.callback(journal.close)
        journal.begin(mappings[0].view)
        self._journals.append(journal)
        # Beside what it keeps, a queue has mapped what it moves at once, and the pages that describe indirect requests.
        limit = plan.kept + MAX_VECTORS + MAX_INDIRECT_SEGMENTS + plan.entries
        line = Line(services, self._domid, place.port, GrantServer(services, self._domid, limit), state)
        line.rings.append((journal, [mapping.view for mapping in mappings]))
        undo.callback(line.close)
        self._lines.append(line)

    def start(self) -> None:
        """Begin to serve."""
        self.keeper.start()

    def kill(self) -> bool:
        """Kill the process, as a fault would; another one takes over. Tell whether there is one."""
        process = self.keeper.process
        if process is not None:
            process.kill()
        return process is not None

    def stop(self, done: Callable[[], None]) -> None:
        """Let go of all that is the guest's after the requests under way; then call `done`, under the lock."""

        def end() -> None:
            self._resources.close()
            done()

        self.keeper.stop(end)
