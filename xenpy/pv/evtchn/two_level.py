"""The 2-level ABI: pending and mask bits in shared_info, and a selector a vCPU that tells which words to look at.

Ref: xen/include/public/xen.h, struct shared_info and vcpu_info
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenpy.errors import Errno, XenError

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.pv.evtchn.port import Port
    from xenpy.pv.shared_info import SharedInfo


class TwoLevel:
    """Delivery through shared_info.

    `mark_upcall` makes an upcall pending on a vCPU; `wake_poller` hears of every port that becomes pending.
    """

    __slots__ = ("_mark_upcall", "_shared_info", "_wake_poller", "by_kernel")

    def __init__(
        self, shared_info: SharedInfo, mark_upcall: Callable[[int], None], wake_poller: Callable[[int], None]
    ) -> None:
        self._shared_info = shared_info
        self._mark_upcall = mark_upcall
        self._wake_poller = wake_poller
        self.by_kernel: Callable[[int, int], bool] | None = None
        """Does all of `set_pending` for (port, vcpu_id), if it can, where the kernel knows these structures; tells whether it could."""

    @property
    def max_ports(self) -> int:
        """Return 4096, or 1024 for a 32-bit guest."""
        return self._shared_info.layout.evtchn_ports

    def set_pending(self, entry: Port) -> None:
        """Set the pending bit, and the selector and the upcall behind it unless the port is masked."""
        number = entry.number
        if self.by_kernel is not None and self.by_kernel(number, entry.vcpu_id):
            return
        shared_info = self._shared_info
        # A guest that became a 32-bit one after binding high ports has no bits for them.
        if number >= shared_info.layout.evtchn_ports or shared_info.mark_pending(number):
            return
        if not shared_info.is_masked(number):
            self._select(entry)
        self._wake_poller(number)

    def clear_pending(self, entry: Port) -> None:
        """Clear the pending bit."""
        if entry.number < self.max_ports:
            self._shared_info.clear_pending(entry.number)

    def is_pending(self, entry: Port) -> bool:
        """Tell whether the pending bit is set."""
        return entry.number < self.max_ports and self._shared_info.is_pending(entry.number)

    def is_masked(self, entry: Port) -> bool:
        """Tell whether the mask bit is set."""
        return entry.number < self.max_ports and self._shared_info.is_masked(entry.number)

    def unmask(self, entry: Port) -> None:
        """Clear the mask bit; deliver what was held back by it."""
        if entry.number >= self.max_ports:
            return
        # In this order: an event that comes in between sees the port unmasked or is seen pending here.
        if self._shared_info.clear_mask(entry.number) and self._shared_info.is_pending(entry.number):
            self._select(entry)

    def is_busy(self, number: int) -> bool:
        """Tell whether the number lies outside the bitmap; the guest queues nothing."""
        return number >= self.max_ports

    def set_priority(self, entry: Port, priority: int) -> None:
        """Raise XenError(ENOSYS): this ABI has no priorities."""
        raise XenError(Errno.ENOSYS, f"port {entry.number}: priority {priority} under the 2-level ABI")

    def _select(self, entry: Port) -> None:
        shared_info = self._shared_info
        word = entry.number // shared_info.layout.word_bits
        if not shared_info.vcpu_info[entry.vcpu_id].set_selector(word):
            self._mark_upcall(entry.vcpu_id)
