"""Event channel ports, with what they are for as xenstore tells it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.abi.event_channel import VIRQ
from xenpy.pv.evtchn import port as states
from xenpy.pv.xenstore.paths import domain_path
from xenpy.testing.trace.record import Symbol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xenpy.pv.evtchn.port import Port
    from xenpy.pv.xenstore import Xenstore
    from xenpy.testing.trace.record import Value

_VIRQS: Final = {int(virq): Symbol(virq.name) for virq in VIRQ}
_MAX_NODES: Final = 4096
"""So many nodes of a guest's devices are looked at, and so many ports remembered."""


class PortNames:
    """What the ports of a domain are for: console, store, device/vif/0, ... Looked up when a port is first seen in use."""

    def __init__(self, store: Xenstore, domid: int) -> None:
        self._store = store
        self._home = domain_path(domid)
        self._known: dict[tuple[int, int], str] = {}

    def name(self, port: int, peer: int) -> str:
        """Return what a port is for, "" if nothing tells; `peer` is the port at the other end, by which a new binding is known."""
        found = self._known.get((port, peer))
        if found is None:
            if len(self._known) >= _MAX_NODES:
                self._known.clear()
            found = next((name for name, value in self._ports() if value == str(port)), "")
            self._known[port, peer] = found
        return found

    def _ports(self) -> Iterator[tuple[str, str]]:
        for name in ("store", "console"):
            yield name, self._store.get(f"{self._home}/{name}/port", "") or ""
        devices = f"{self._home}/device"
        if not self._store.exists(devices):
            return
        for count, (path, value) in enumerate(self._store.walk(devices)):
            if count >= _MAX_NODES:
                return
            if path.rpartition("/")[2].startswith("event-channel"):
                # .../device/vif/0/queue-1/event-channel-tx is for device/vif/0
                yield "/".join(path.removeprefix(f"{self._home}/").split("/")[:3]), value


def port_fields(entry: Port, names: PortNames) -> dict[str, Value]:
    """Return what an event is: to which port of whom, and from where."""
    fields: dict[str, Value] = {"to": entry.owner.domid, "port": entry.number}
    if entry.state == states.VIRQ:
        fields["virq"] = _VIRQS.get(entry.virq, entry.virq)
    peer = entry.peer
    if peer is not None:
        fields |= {"from": peer.owner.domid, "from_port": peer.number}
        ours, other = (peer.number, entry.number) if not entry.owner.domid else (entry.number, peer.number)
        if name := names.name(ours, other):
            fields["for"] = name
    return fields
