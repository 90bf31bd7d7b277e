"""shared_info and vcpu_info: what the hypervisor and a guest write together, in the guest's 64- or 32-bit layout.

Ref: xen/include/public/xen.h
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from xenpy import atomics
from xenpy.errors import Errno, XenError
from xenpy.memory import PAGE_SIZE, Frame, GuestMemory

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.framepool import FramePool

LEGACY_MAX_VCPUS: Final = 32
"""vCPUs whose vcpu_info has a place in shared_info. Ref: arch-x86/xen.h, XEN_LEGACY_MAX_VCPUS"""

VCPU_INFO_SIZE: Final = 64
TIME_OFFSET: Final = 32
"""vcpu_time_info within vcpu_info, in both layouts."""

_UPCALL_PENDING: Final = 0
_UPCALL_MASK: Final = 1


@dataclass(frozen=True, slots=True)
class Layout:
    """Byte offsets that depend on the guest's word size."""

    word_bits: int
    evtchn_pending: int
    evtchn_mask: int
    wc_version: int
    wc_sec_hi: int
    arch: int
    pending_sel: int
    cr2: int

    @property
    def evtchn_ports(self) -> int:
        """Return how many 2-level ports there are. Ref: event_channel.h, EVTCHN_2L_NR_CHANNELS"""
        return self.word_bits * self.word_bits


LAYOUT_64: Final = Layout(64, 2048, 2560, 3072, 3084, 3088, 8, 16)
# arch_shared_info of i386 starts right after wc_nsec and carries wc_sec_hi as its seventh word.
LAYOUT_32: Final = Layout(32, 2048, 2176, 2304, 2316 + 24, 2316, 4, 8)


class VcpuInfo:
    """A vCPU's vcpu_info, wherever the guest has put it."""

    __slots__ = ("gpa", "hva", "layout", "view")

    def __init__(self, layout: Layout, hva: int, view: memoryview, gpa: int | None = None) -> None:
        self.layout = layout
        self.hva = hva
        self.view = view
        self.gpa = gpa
        """Where the guest placed it with VCPUOP_register_vcpu_info; None while it is in shared_info."""

    @property
    def upcall_pending(self) -> bool:
        """Tell whether an upcall waits for the guest."""
        return bool(self.view[_UPCALL_PENDING])

    def set_upcall_pending(self) -> bool:
        """Mark an upcall pending; tell whether one was pending already."""
        return bool(atomics.xchg8(self.hva + _UPCALL_PENDING, 1))

    @property
    def upcall_mask(self) -> bool:
        """Tell whether the guest holds upcalls off. Only PV guests use the field."""
        return bool(self.view[_UPCALL_MASK])

    @upcall_mask.setter
    def upcall_mask(self, masked: bool) -> None:
        self.view[_UPCALL_MASK] = masked

    def set_selector(self, word: int) -> bool:
        """Mark a word of the 2-level pending array in evtchn_pending_sel; tell whether it was marked."""
        base = self.hva + self.layout.pending_sel
        # 32-bit selectors are only 4-byte aligned while the atomic works on 8-byte words: widen downwards.
        return atomics.set_bit(base & ~7, word + (base & 7) * 8)

    def set_all_selectors(self) -> None:
        """Make the guest scan its whole pending array."""
        size = self.layout.word_bits // 8
        self.view[self.layout.pending_sel : self.layout.pending_sel + size] = b"\xff" * size

    @property
    def cr2(self) -> int:
        """Return the fault address a PV guest reads. Only meaningful in the 64-bit layout."""
        return int.from_bytes(self.view[self.layout.cr2 : self.layout.cr2 + 8], "little")

    @cr2.setter
    def cr2(self, gva: int) -> None:
        self.view[self.layout.cr2 : self.layout.cr2 + 8] = gva.to_bytes(8, "little")


@dataclass(frozen=True, slots=True)
class SharedInfoState:
    """What of shared_info is not in its page: the guest's word size, and where it has put each vcpu_info, if it has (gpa)."""

    word_bits: int
    placed: tuple[int | None, ...]


class SharedInfo:
    """The shared_info page of a domain and its vCPUs' vcpu_info."""

    def __init__(self, frames: FramePool, memory: GuestMemory, vcpus: int) -> None:
        self.frame: Frame = frames.allocate()
        self.view = frames.view(self.frame)
        self.hva = frames.hva(self.frame)
        self.layout = LAYOUT_64
        self._memory = memory
        self.hold: Callable[[int], bool] = lambda _gfn: True
        """Tells whether a gfn is memory that the guest may write to, and has it stay that."""
        self._parking = frames.allocate()  # vcpu_info of vCPUs beyond the legacy 32 until they register one
        self._parking_view = frames.view(self._parking)
        self._parking_hva = frames.hva(self._parking)
        self.vcpu_info = [self._initial(vcpu_id) for vcpu_id in range(vcpus)]

    def _initial(self, vcpu_id: int) -> VcpuInfo:
        if vcpu_id < LEGACY_MAX_VCPUS:
            offset = vcpu_id * VCPU_INFO_SIZE
            return VcpuInfo(self.layout, self.hva + offset, self.view[offset : offset + VCPU_INFO_SIZE])
        # Xen, too, shares one dummy vcpu_info among all such vCPUs.
        return VcpuInfo(self.layout, self._parking_hva, self._parking_view[:VCPU_INFO_SIZE])

    def set_word_size(self, bits: int) -> None:
        """Switch the layout to that of a 32- or 64-bit guest, as Xen does when the guest sets up its hypercall interface.

        Only the vcpu_info still within shared_info follow; pending events are not carried over, as in Xen.
        """
        self.layout = LAYOUT_64 if bits == 64 else LAYOUT_32
        for info in self.vcpu_info:
            info.layout = self.layout

    @property
    def max_pfn(self) -> int:
        """Return how many pfns a PV guest says that it has. Ref: xen/include/public/arch-x86/xen.h, struct arch_shared_info"""
        return int.from_bytes(self.view[self.layout.arch : self.layout.arch + self.layout.word_bits // 8], "little")

    def register_vcpu_info(self, vcpu_id: int, gfn: int, offset: int, *, running: bool = False) -> None:
        """Move a vCPU's vcpu_info into guest memory, with its contents; a vCPU may do so once, for itself or one that is not `running`.

        Raises XenError: ENXIO (the structure would cross the page or be misaligned), EINVAL.

        Ref: xen/include/public/vcpu.h, VCPUOP_register_vcpu_info
        """
        old = self.vcpu_info[vcpu_id]
        if offset > PAGE_SIZE - VCPU_INFO_SIZE or offset % (self.layout.word_bits // 8):
            raise XenError(Errno.ENXIO, f"vcpu_info of vcpu {vcpu_id} at offset {offset:#x}")
        if old.gpa is not None or running:
            raise XenError(
                Errno.EINVAL, f"vcpu_info of vcpu {vcpu_id} is in use{'' if running else ' elsewhere already'}"
            )
        gpa = (gfn << 12) + offset
        try:
            view = self._memory.view(gpa, VCPU_INFO_SIZE)
        except XenError as error:
            raise XenError(Errno.EINVAL, error.reason) from None
        if not self.hold(gfn):
            raise XenError(Errno.EINVAL, f"gfn {gfn:#x} is no memory that the guest may write to")
        parked = old.hva == self._parking_hva
        new = VcpuInfo(self.layout, self._memory.hva(gpa), view, gpa)
        view[:] = bytes(VCPU_INFO_SIZE) if parked else old.view
        new.upcall_mask = parked or new.upcall_mask
        self.vcpu_info[vcpu_id] = new
        # An event that arrived around the move must not be lost: have the guest look at everything once.
        new.set_all_selectors()
        new.set_upcall_pending()

    def state(self) -> SharedInfoState:
        """Return what is not in the page."""
        return SharedInfoState(self.layout.word_bits, tuple(info.gpa for info in self.vcpu_info))

    def restore(self, state: SharedInfoState) -> None:
        """Take over what `state` returned, of a domain with the same memory and pages. Raises XenError(EFAULT)."""
        self.set_word_size(state.word_bits)
        for vcpu_id, gpa in enumerate(state.placed):
            if gpa is not None:
                view = self._memory.view(gpa, VCPU_INFO_SIZE)
                self.vcpu_info[vcpu_id] = VcpuInfo(self.layout, self._memory.hva(gpa), view, gpa)

    def mark_pending(self, port: int) -> bool:
        """Set a port's bit in evtchn_pending; tell whether it was set."""
        return atomics.set_bit(self.hva + self.layout.evtchn_pending, port)

    def clear_pending(self, port: int) -> bool:
        """Clear a port's bit in evtchn_pending; tell whether it was set."""
        return atomics.clear_bit(self.hva + self.layout.evtchn_pending, port)

    def is_pending(self, port: int) -> bool:
        """Tell whether a port's bit in evtchn_pending is set."""
        return bool(self.view[self.layout.evtchn_pending + port // 8] >> (port % 8) & 1)

    def is_masked(self, port: int) -> bool:
        """Tell whether the guest masks a port."""
        return bool(self.view[self.layout.evtchn_mask + port // 8] >> (port % 8) & 1)

    def clear_mask(self, port: int) -> bool:
        """Unmask a port; tell whether it was masked."""
        return atomics.clear_bit(self.hva + self.layout.evtchn_mask, port)

    def set_mask(self, port: int) -> None:
        """Mask a port."""
        atomics.set_bit(self.hva + self.layout.evtchn_mask, port)
