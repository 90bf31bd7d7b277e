"""What page typing needs of the rest of the hypervisor, and what MMU hypercalls need of a PV domain and its vCPUs."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from xenpy.pv.mmu.mmu import Mmu

Checkpoint = Callable[[], None]
"""Lets others have the lock during long work; raises when the domain is going."""
Store = Callable[[int, int], None]
"""store(gpa, value): writes a 64-bit word of a frame that is or was a page table, so that shadow page tables notice."""


class Mappable(IntEnum):
    """Whether a guest may map a frame that is not its RAM; a plain bool will do where nothing is read-only."""

    NO = 0
    YES = 1
    READ_ONLY = 2


class PvVcpu(Protocol):
    """A vCPU of a PV domain. `kernel_l4` and `user_l4` are the mfns of its top-level tables, 0 meaning none."""

    vcpu_id: int
    kernel_l4: int
    user_l4: int

    def translate(self, gva: int, *, write: bool = False) -> int:
        """Return the gpa behind a guest-virtual address. Raises XenError(EFAULT)."""

    def load_base(self, mfn: int) -> None:
        """Make an L4 the kernel's, set `kernel_l4` and flush the TLB."""

    def load_user_base(self, mfn: int) -> None:
        """Make an L4 that of user mode, or none with 0, and set `user_l4`."""

    def flush_tlb(self) -> None:
        """Drop this vCPU's translations before it runs on."""

    def invlpg(self, gva: int) -> None:
        """Drop this vCPU's translation of one page before it runs on."""

    def flush_on(self, vcpu_ids: Iterable[int] | None, gva: int | None) -> None:
        """Drop translations on several vCPUs, or all of the domain's (None): of one page, or all (None)."""

    def set_ldt(self, gva: int, entries: int) -> None:
        """Load the local descriptor table, which is empty with 0 entries."""

    def set_gdt(self, mfns: tuple[int, ...], entries: int) -> None:
        """Load the guest's part of the global descriptor table."""

    def forget_selectors(self) -> None:
        """Take no selector for one of a good descriptor any more: descriptors have changed."""


class PvDomain(Protocol):
    """A PV domain."""

    domid: int
    mmu: Mmu
    machphys: tuple[int, int, int]
    """Where the guest sees the machine-to-physical table: first address, end, and the highest mfn in it."""
    machphys_mfns: Sequence[int]
    """Where it is: the first mfn of each 2 MiB of it."""

    @property
    def vcpus(self) -> Sequence[PvVcpu]:
        """Return the domain's vCPUs by number."""
