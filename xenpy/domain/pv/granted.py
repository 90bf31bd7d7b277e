"""Pages of other domains that a PV guest has mapped by their grants.

Each gets a frame number of the guest's own, above all its RAM, for as long as it is mapped: in a window of the guest-physical space that
is one memory slot, so that mapping and unmapping are a change of our own address space and of the guest's page tables only.

Ref: xen/include/public/grant_table.h
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.abi.grant_table import (
    GNTST,
    GNTMAP_application_map,
    GNTMAP_contains_pte,
    GNTMAP_guest_avail0,
    GNTMAP_host_map,
    GNTMAP_readonly,
)
from xenpy.errors import XenError
from xenpy.memory import PAGE_SHIFT
from xenpy.pv.gnttab import GrantError
from xenpy.pv.paging import PTE_ACCESSED, PTE_DIRTY, PTE_FRAME, PTE_NX, PTE_PRESENT, PTE_RW, PTE_USER

if TYPE_CHECKING:
    from xenpy.domain.pv.domain import PvDomain
    from xenpy.memory import Frame

WINDOW_GPA: Final = 1 << 39
_AVAILABLE: Final = 7
"""As many bits of a page table entry as are the guest's may be set by the upper bits of the flags."""
_AVAILABLE_SHIFT: Final = 9


def _key(flags: int, frame: Frame) -> tuple[Frame, bool]:
    """Return what mappings of a page that are made with these flags share an mfn by."""
    return frame, bool(flags & GNTMAP_readonly)


class GrantedPages:
    """Maps granted pages into a PV guest, at most `size` at once. Under the host's lock."""

    def __init__(self, domain: PvDomain, size: int) -> None:
        self._domain = domain
        self._size = size
        self._used: dict[tuple[Frame, bool], list[int]] = {}
        """(frame, whether it is read-only) -> its mfn, and how many mappings it has."""
        self._free: list[int] = []
        self._next = WINDOW_GPA >> PAGE_SHIFT

    def check(self, flags: int) -> None:
        """Take all flags: Xen takes no notice of those that it does not know either, such as GNTMAP_can_fail."""

    def map(self, host_addr: int, flags: int, frame: Frame) -> int:
        """Map a page by the entry at a machine address, or that of a linear address; return the page's machine address."""
        mfn = self._take(flags, frame)
        if flags & GNTMAP_host_map:
            entry = mfn << PAGE_SHIFT | PTE_PRESENT | PTE_ACCESSED | PTE_DIRTY | PTE_NX
            entry |= (flags >> GNTMAP_guest_avail0 & _AVAILABLE) << _AVAILABLE_SHIFT
            if not flags & GNTMAP_readonly:
                entry |= PTE_RW
            if flags & GNTMAP_application_map:
                entry |= PTE_USER
            try:
                old = self._domain.mmu.replace_foreign(self._entry_gpa(host_addr, flags), entry)
            except XenError as error:
                self.release(flags, frame)
                raise GrantError(GNTST.general_error, str(error)) from None
            if old & PTE_PRESENT:
                self._domain.flush_all()
        return mfn << PAGE_SHIFT

    def unmap(self, host_addr: int, flags: int, frame: Frame, new_addr: int = 0) -> None:
        """Clear the entry, or move there that of another linear address, and drop all translations."""
        if new_addr and flags & GNTMAP_contains_pte:
            raise GrantError(GNTST.general_error, "a mapping that was made by its entry is not replaced")
        mmu, mfn = self._domain.mmu, self._used[_key(flags, frame)][0]
        try:
            gpa = self._entry_gpa(host_addr, flags)
            if not new_addr:
                mmu.replace_foreign(gpa, 0, mfn=mfn)
            else:
                from_gpa = self._entry_gpa(new_addr, flags)
                entry = int(self._domain.memory.u64[from_gpa >> 3])
                mmu.replace_foreign(gpa, entry, mfn=mfn)
                mmu.replace_foreign(from_gpa, 0)
        except XenError as error:
            raise GrantError(GNTST.general_error, str(error)) from None
        self._domain.flush_all()

    def release(self, flags: int, frame: Frame) -> None:
        """Take note that one mapping of a page, made with these flags, is no more."""
        key = _key(flags, frame)
        used = self._used[key]
        used[1] -= 1
        if not used[1]:
            del self._used[key]
            self._domain.memory.unplace(used[0])
            self._free.append(used[0])

    def _take(self, flags: int, frame: Frame) -> int:
        key = _key(flags, frame)
        used = self._used.get(key)
        if used is None:
            first = WINDOW_GPA >> PAGE_SHIFT
            if self._next == first and not self._free:
                self._domain.memory.add_window(WINDOW_GPA, self._size << PAGE_SHIFT)
            if not self._free and self._next == first + self._size:
                raise GrantError(GNTST.no_space, "the guest maps as many granted pages as it may")
            mfn = self._free[-1] if self._free else self._next
            try:
                # Where ring 3 can write to its page tables, an entry that is read-only keeps nobody from the page.
                self._domain.memory.place(mfn, frame, readonly=bool(flags & GNTMAP_readonly))
            except (XenError, OSError) as error:  # OSError: a guest may map more pages than the host lets us map
                raise GrantError(GNTST.general_error, str(error)) from None
            if self._free:
                self._free.pop()
            else:
                self._next += 1
            used = self._used[key] = [mfn, 0]
        used[1] += 1
        return used[0]

    def _entry_gpa(self, host_addr: int, flags: int) -> int:
        """Return the machine address of the entry that is meant. Raises XenError(EINVAL)."""
        if flags & GNTMAP_contains_pte:
            return host_addr & (PTE_FRAME | (1 << PAGE_SHIFT) - 1)
        writer = self._domain.writer
        assert writer is not None
        return self._domain.mmu.entry_gpa(writer.kernel_l4, host_addr)
