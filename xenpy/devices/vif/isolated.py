"""An interface whose frames are moved by a process that may die at any moment.

The rings' requests that were taken and not answered are in journals (see `xenpy.devices.journal`); who takes over sends what is to be sent
again, and gives the guest other frames in the pages that wait. Frames that the process was about to hand on are lost, as on any wire.
"""

from __future__ import annotations

import mmap
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final, Protocol

from xenpy import libc
from xenpy.abi.netif import NETIF_RX_SLOT_SIZE, NETIF_TX_SLOT_SIZE
from xenpy.devices.isolation.grants import GrantServer, ram_offset
from xenpy.devices.isolation.keeper import Keeper, Line
from xenpy.devices.isolation.looking import ASK_SIZE, open_table, tell_whether_plain
from xenpy.devices.isolation.process import TEMPLATE
from xenpy.devices.journal import Journal
from xenpy.devices.ring import ring_entries

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Mapping

    from xenpy.config.vif import VifConfig
    from xenpy.devices.trouble import Ask
    from xenpy.devices.vif.flow import Steering
    from xenpy.devices.vif.link import Link
    from xenpy.devices.vif.passt import Passt
    from xenpy.devices.vif.plan import Plan, QueuePlace
    from xenpy.devices.vif.services import VifServices
    from xenpy.devices.vif.station import Listener, Station
    from xenpy.devices.vif.tap import TapLink
    from xenpy.loop import Loop

TX_ENTRIES: Final = ring_entries(1, NETIF_TX_SLOT_SIZE)
RX_ENTRIES: Final = ring_entries(1, NETIF_RX_SLOT_SIZE)
RX_JOURNAL: Final = Journal.size(TX_ENTRIES, NETIF_TX_SLOT_SIZE)
"""Where in a line's state the journal of a receive ring is; that of a transmit ring is at its start."""
ASKS: Final = RX_JOURNAL + Journal.size(RX_ENTRIES, NETIF_RX_SLOT_SIZE)
"""And, in the first line's state, the word that says whether to ask for grants."""
_STATE_SIZE: Final = ASKS + ASK_SIZE


class Outlet(Protocol):
    """What is behind an interface, as far as the VMM keeps it."""

    kind: str

    def begin(self) -> None:
        """Drop what came before the frontend was there."""

    def open(self, fds: list[int]) -> None:
        """Add what a process moves frames with, for the caller to close; nothing if it will come later. From any thread."""

    def lost(self) -> None:
        """Hear from the loop's thread that what was opened is of no use any more."""

    def link(self, loop: Loop) -> Link:
        """Return the same for frames that the host's loop moves; the outlet is of no use then."""

    def close(self) -> None:
        """Free it."""


class TapOutlet:
    """A tap: it stays open while processes come and go."""

    kind = "tap"

    def __init__(self, link: TapLink) -> None:
        self._link = link

    def begin(self) -> None:
        """Drop what came before the frontend was there."""
        self._link.drain()

    def open(self, fds: list[int]) -> None:
        """Add a descriptor of the tap."""
        fds.append(self._link.dup())

    def lost(self) -> None:
        """Do nothing: a tap is not lost."""

    def link(self, _loop: Loop) -> Link:
        """Return the tap."""
        return self._link

    def close(self) -> None:
        """Close the tap."""
        self._link.close()


class PasstOutlet:
    """A passt, which each process gets a new stream of."""

    kind = "stream"

    def __init__(self, passt: Passt) -> None:
        self.passt = passt

    def begin(self) -> None:
        """Do nothing: a stream begins when it is opened."""

    def open(self, fds: list[int]) -> None:
        """Add a stream, if passt is there."""
        stream = self.passt.open()
        if stream is not None:
            fds.append(stream.detach())

    def lost(self) -> None:
        """Have passt give us another stream."""
        self.passt.lost()

    def link(self, loop: Loop) -> Link:
        """Return a link to passt, which keeps the guest's connections."""
        from xenpy.devices.vif.passt_link import PasstLink

        return PasstLink(loop, self.passt)

    def close(self) -> None:
        """End passt."""
        self.passt.close()


class Isolated:
    """Has a process move the frames while a frontend is connected."""

    def __init__(
        self, services: VifServices, domid: int, config: VifConfig, outlet: Outlet, listener: Listener
    ) -> None:
        self._services = services
        self._domid = domid
        self._config = config
        self._listener = listener
        self._wishes: dict[str, Any] = {"open": True, "filtering": False}
        self._steering: Steering | None = None
        self._groups: list[str] = []
        self.outlet = outlet
        self.keeper: Keeper | None = None
        """What keeps the process running, while a frontend is connected."""
        if isinstance(outlet, PasstOutlet):
            outlet.passt.on_stream = self._on_stream
            outlet.passt.on_change = lambda up: listener.link_changed(up=up)
        TEMPLATE.hold()

    def _on_stream(self, stream: socket.socket) -> None:
        """Pass a stream on to the process; without one it is of no use: the next process gets its own."""
        with stream:
            if self.keeper is not None:
                self.keeper.tell({"stream": True}, [stream.fileno()])

    # -- a frontend ---------------------------------------------------------------------------------------------------

    def connect(self, plan: Plan, steering: Steering) -> None:
        """Map rings, bind ports and start a process. Raises FrontendError, GrantError, XenError."""
        lines: list[Line] = []
        journals: list[Journal] = []
        with ExitStack() as undo:
            queues = [self._add(place, lines, journals, undo) for place in plan.queues]
            granter = self._services.domain(self._domid)
            undo.callback(tell_whether_plain(granter, memoryview(mmap.mmap(lines[0].state, _STATE_SIZE))[ASKS:]))
            resources = undo.pop_all()
        self._steering, self._groups = steering, []
        offloads = {name: getattr(plan.offloads, name) for name in type(plan.offloads).__slots__}

        def describe(fds: list[int]) -> Mapping[str, Any]:
            table = open_table(granter, fds)
            self.outlet.open(fds)
            return {
                "table": table,
                "queues": queues, "offloads": offloads, "rate": self._config.rate, "kind": self.outlet.kind,
                "wishes": self._wishes, "steering": steering.state(), "groups": self._groups,
            }  # fmt: skip

        self._resources = resources
        self.outlet.begin()
        self.keeper = Keeper(
            self._services, self._domid, f"vif {self._domid}/{self._config.devid}", lines, service="vif",
            device=describe, progress=lambda: [journal.answered for journal in journals], fail=self._listener.fail,
            note=self._on_note,
        )  # fmt: skip
        self.keeper.start()

    def _add(self, place: QueuePlace, lines: list[Line], journals: list[Journal], undo: ExitStack) -> dict[str, int]:
        """Map a queue's rings, and make what its process will need: a line for each port."""
        queue: dict[str, int] = {"tx_line": len(lines)}
        states = [self._line(place.tx_port, lines, undo)]
        if place.rx_port != place.tx_port:
            states.append(self._line(place.rx_port, lines, undo))
        queue["rx_line"] = len(lines) - 1
        for name, gref, line, at, entries, size in (
            ("tx", place.tx_gref, queue["tx_line"], 0, TX_ENTRIES, NETIF_TX_SLOT_SIZE),
            ("rx", place.rx_gref, queue["rx_line"], RX_JOURNAL, RX_ENTRIES, NETIF_RX_SLOT_SIZE),
        ):
            mapping = undo.enter_context(self._services.map_page(self._domid, gref))
            queue[name] = ram_offset(self._services, self._domid, mapping)
            state = states[line - queue["tx_line"]]
            journal = Journal(state[at : at + Journal.size(entries, size)], entries, size)
            undo.callback(journal.close)
            journal.begin(mapping.view)
            journals.append(journal)
            lines[line].rings.append((journal, [mapping.view]))
        return queue

    def _line(self, port: int, lines: list[Line], undo: ExitStack) -> memoryview:
        """Make a line for a port; return its state."""
        state = libc.memfd("xenpy-journal", _STATE_SIZE)
        undo.callback(os.close, state)
        grants = GrantServer(self._services, self._domid, TX_ENTRIES + RX_ENTRIES, looks=True)
        line = Line(self._services, self._domid, port, grants, state)
        undo.callback(line.close)
        lines.append(line)
        return memoryview(mmap.mmap(state, _STATE_SIZE))

    def _on_note(self, note: dict[str, Any]) -> None:
        """Hear what a process has to say, in the keeper's thread."""
        if "groups" in note:
            self._groups = note["groups"]
        if "lost" in note:
            self._services.call_soon(self.outlet.lost)

    def trouble(self, ask: Ask | None) -> bool:
        """Refuse: a process cannot ask."""
        return ask is None

    def kill(self) -> bool:
        """Kill the process that moves the frames; another one takes over. Tell whether there is one."""
        process = self.keeper.process if self.keeper is not None else None
        if process is not None:
            process.kill()
        return process is not None

    def in_loop(self) -> Station:
        """Return what moves the frames in the host's loop."""
        from xenpy.devices.vif.station import InLoop

        TEMPLATE.drop()
        return InLoop(self._services, self._domid, self._config, self.outlet.link(self._services.loop), self._listener)

    def disconnect(self, done: Callable[[], None]) -> None:
        """Have the process end, let go of what is the guest's, then call `done`."""
        assert self.keeper is not None
        resources = self._resources

        def end() -> None:
            resources.close()
            done()

        self.keeper.stop(end)
        self.keeper = None

    # -- what changes -------------------------------------------------------------------------------------------------

    def set(self, *, is_open: bool, filtering: bool) -> None:
        """Say whether frames pass, and whether the guest hears only the group addresses that it asked for."""
        wishes = {"open": is_open, "filtering": filtering}
        if wishes != self._wishes:
            self._wishes = wishes
            if self.keeper is not None:
                self.keeper.tell({"wishes": wishes})

    def steer(self) -> None:
        """Pass on what the guest has changed about its steering."""
        if self.keeper is not None and self._steering is not None:
            self.keeper.tell({"steering": self._steering.state()})

    def close(self) -> None:
        """Free what is behind the interface."""
        self.outlet.close()
        TEMPLATE.drop()
