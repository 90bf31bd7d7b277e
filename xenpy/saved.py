"""A guest that stands still, taken down whole: its domain, its part of the store, its devices, its RAM, its disks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from xenpy.codec import plain
from xenpy.devices.xenbus import BackendState
from xenpy.domain.make import save_domain
from xenpy.domain.saved import DomainState
from xenpy.pv.xenstore.saved import ConnectionState, NodeState, save_domain_nodes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xenpy.devices.vbd.frozen import FrozenDisk
    from xenpy.frozen import FrozenRam
    from xenpy.host import Guest


@plain
@dataclass(frozen=True, slots=True)
class GuestState:
    """A guest as plain data, but for its RAM and its disks. The ports are the guest's."""

    domain: DomainState
    nodes: tuple[NodeState, ...]
    connection: ConnectionState
    store_port: int
    console_port: int
    console_input: bytes
    console_broken: bool
    devices: tuple[BackendState, ...]


@dataclass(frozen=True, slots=True)
class SavedGuest:
    """A guest that can go on any number of times. `disks` is by device number."""

    state: GuestState
    ram: FrozenRam
    disks: Mapping[int, FrozenDisk]

    def close(self) -> None:
        """Free what it holds; guests that were made of it keep what they have."""
        self.ram.close()
        for disk in self.disks.values():
            disk.close()


def save_guest(guest: Guest) -> SavedGuest:
    """Return a guest whose vCPUs stand still. It goes on as one more guest made of what is returned: nothing of that changes any more.

    The caller must not hold the host's lock. Raises HostError for what cannot be saved.
    """
    domain = guest.domain
    guest.devices.check_saveable()
    parked = guest.devices.park()
    if domain.kernel_events is not None:
        domain.kernel_events.forbid()  # or a timer might run out after memory was copied and before the timer is
    try:
        with guest.host.lock:
            state = GuestState(
                domain=save_domain(domain),
                nodes=save_domain_nodes(guest.host.store, domain.domid),
                connection=guest.ring.state(),
                store_port=guest.store_port,
                console_port=guest.console_port,
                console_input=guest.console.queued_input,
                console_broken=guest.console.broken,
                devices=parked,
            )
            ram = domain.memory.freeze()
            domain.evtchn.memory_frozen()
            guest.devices.memory_frozen()
            ram.seal()
            disks = guest.devices.freeze_disks()
        return SavedGuest(state, ram, disks)
    finally:
        guest.devices.unpark()
        if domain.kernel_events is not None:
            domain.kernel_events.allow()
