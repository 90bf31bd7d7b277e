"""What a domain asks of the host it lives on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import threading

    from xenpy.domain.domain import Domain
    from xenpy.domain.pv.probe import Traits
    from xenpy.kvm.system import Kvm
    from xenpy.loop import Loop
    from xenpy.pv.evtchn import HostPorts
    from xenpy.pv.xenstore import Xenstore


class Services(Protocol):
    """The host, seen from a domain."""

    lock: threading.RLock
    """The hypervisor's one lock: all of `pv` is changed under it."""
    kvm: Kvm
    loop: Loop
    store: Xenstore
    ports: HostPorts
    """dom0's event channels: ours."""

    def pv_traits(self) -> Traits:
        """Return what matters of this host's KVM to PV guests. Raises HostError where they cannot run."""

    def domain(self, domid: int) -> Domain:
        """Return a running domain. Raises XenError(ESRCH)."""

    def ended(self, domain: Domain) -> None:
        """Take note that a domain has ended; called once, from any thread."""
