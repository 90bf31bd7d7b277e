"""How a vCPU of a PVH domain is told that events wait for it.

A guest chooses between a vector through each vCPU's LAPIC (HVMOP_set_evtchn_upcall_vector) and one vector for all that Xen injects past the
LAPIC (HVM_PARAM_CALLBACK_IRQ of type 2).
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Final

from xenpy.kvm.constants import MpState, XenVcpuAttr
from xenpy.pv.hvm_params import CALLBACK_TYPE_SHIFT, CALLBACK_TYPE_VECTOR

if TYPE_CHECKING:
    from xenpy.domain.pvh_vcpu import PvhVcpu

RFLAGS_IF: Final = 1 << 9
_INTERRUPT_RETRY_NS: Final = 200_000
_LAPIC_RETRY_NS: Final = 1_000_000
_LAPIC_RETRY_MAX_NS: Final = 256_000_000


def callback_vector(value: int) -> int:
    """Return the vector of HVM_PARAM_CALLBACK_IRQ's value when it names one, else 0."""
    return value & 0xFF if value >> CALLBACK_TYPE_SHIFT == CALLBACK_TYPE_VECTOR else 0


class Upcalls:
    """The delivery of one vCPU's upcalls."""

    def __init__(self, vcpu: PvhVcpu) -> None:
        self._vcpu = vcpu
        self.vector = 0
        """The vector through the LAPIC; 0 while the guest has not chosen one."""
        self.unsettled = False
        """Whether `work` has something to do when the vCPU's thread is out of the guest."""
        self._lapic_retry_ns = _LAPIC_RETRY_NS

    def set_vector(self, vector: int) -> None:
        """Deliver through the LAPIC from now on."""
        self.vector = vector
        self.tell_kernel()
        self._vcpu.domain.upcall_vectors_changed()
        if self._vcpu.event_pending():
            self._doubt()

    def tell_kernel(self) -> None:
        """Have KVM deliver by the vector what it delivers itself."""
        vcpu = self._vcpu
        if vcpu.domain.kvm_delivers and self.vector:
            vcpu.request(partial(vcpu.kvm.xen_set_attr, XenVcpuAttr.UPCALL_VECTOR, vector=self.vector))

    def deliver(self) -> None:
        """Tell the guest. Under the host's lock, from any thread."""
        vcpu = self._vcpu
        if self.vector:
            if not vcpu.domain.vm.signal_msi(vcpu.apic_id, self.vector):
                self._doubt()
        elif vcpu.domain.callback_vector:
            self.unsettled = not vcpu.domain.kvm_upcalls  # KVM's Xen support injects it on the next entry
            vcpu.kvm.kick()

    def _doubt(self) -> None:
        self.unsettled = True
        self._lapic_retry_ns = _LAPIC_RETRY_NS
        self._vcpu.kvm.kick()

    def work(self) -> None:
        """Go on with what could not be delivered at once. In the vCPU's thread."""
        if self.vector:
            self._send_again()
        else:
            self._inject()

    def _send_again(self) -> None:
        """Send a doubtful upcall's interrupt again, later and later, until the guest has seen it.

        A LAPIC that is not enabled drops interrupts, and INIT clears those it has accepted. A vCPU that halts for good is let sleep.
        """
        vcpu = self._vcpu
        if vcpu.event_pending() and not vcpu.halts_uninterruptibly():
            vcpu.domain.vm.signal_msi(vcpu.apic_id, self.vector)
            self._retry_after(self._lapic_retry_ns)
            self._lapic_retry_ns = min(2 * self._lapic_retry_ns, _LAPIC_RETRY_MAX_NS)
        else:
            self._settle()

    def _inject(self) -> None:
        """Inject the callback vector as Xen does: past the LAPIC, as soon as the guest takes interrupts, without an EOI."""
        vcpu, kvm = self._vcpu, self._vcpu.kvm
        vector = vcpu.domain.callback_vector
        if not vector or not vcpu.event_pending():
            self._settle()
            return
        events = kvm.get_events()
        blocked = events.interrupt.shadow or events.interrupt.injected or events.exception.injected
        if not kvm.regs.rflags & RFLAGS_IF or blocked:
            self._retry_after(_INTERRUPT_RETRY_NS)
            return
        events.interrupt.injected = 1
        events.interrupt.nr = vector
        events.interrupt.soft = 0
        kvm.set_events(events)
        if kvm.get_mp_state() == MpState.HALTED:
            kvm.set_mp_state(MpState.RUNNABLE)
        self._settle()

    def _settle(self) -> None:
        self.unsettled = False
        self._vcpu.retry_at = None

    def _retry_after(self, delay_ns: int) -> None:
        self._vcpu.retry_at = time.monotonic_ns() + delay_ns
        self._vcpu.rearm()
