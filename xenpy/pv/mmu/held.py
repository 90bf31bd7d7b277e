"""What vCPUs, and others outside of the guest's page tables, hold of a PV guest's frames."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from xenpy.errors import Errno, XenError
from xenpy.pv.mmu.descriptor_tables import DescriptorTables
from xenpy.pv.mmu.layout import FrameType

if TYPE_CHECKING:
    from xenpy.pv.mmu.frames import FrameTable
    from xenpy.pv.mmu.protocols import Checkpoint
    from xenpy.pv.mmu.types import PageTypes


def no_checkpoint() -> None:
    """Go on at once."""


class Held:
    """Counts them, and sees to it that a top-level table serves either a kernel or user mode."""

    def __init__(self, frames: FrameTable, types: PageTypes) -> None:
        self.frames = frames
        self.types = types
        self.held: Counter[int] = Counter()
        """How often each frame is held, as its type, by a vCPU: as a top-level table or a page of descriptors."""
        self._bases: dict[bool, Counter[int]] = {True: Counter(), False: Counter()}
        """How often each L4 is the kernel's (True), or user mode's, on some vCPU."""
        self._descriptor_tables: dict[int, DescriptorTables] = {}

    def hold(self, mfn: int, kind: int, checkpoint: Checkpoint = no_checkpoint) -> None:
        """Take a reference for a vCPU to an L4 or to a SEGDESC page. Raises XenError, EINVAL for one or what its entries deserve."""
        self.types.get(mfn, kind, checkpoint)
        self.held[mfn] += 1

    def release(self, mfn: int, checkpoint: Checkpoint = no_checkpoint) -> None:
        """Give back what `hold` took."""
        self.held[mfn] -= 1
        if not self.held[mfn]:
            del self.held[mfn]
        self.types.put(mfn, checkpoint)

    def hold_writable(self, mfn: int) -> bool:
        """Have a frame stay writable memory while somebody outside may write to it; tell whether it can. Frames not of RAM always can."""
        if not self.frames.base <= mfn < self.frames.end:
            return True
        if not self.frames.get_writable(mfn):
            return False
        self.held[mfn] += 1
        return True

    def release_writable(self, mfn: int) -> None:
        """Undo `hold_writable`."""
        if self.frames.base <= mfn < self.frames.end:
            self.held[mfn] -= 1
            if not self.held[mfn]:
                del self.held[mfn]
            self.frames.put_writable(mfn)

    def take_base(self, mfn: int, checkpoint: Checkpoint = no_checkpoint, *, kernel: bool) -> None:
        """Take a reference to an L4 that a vCPU is going to run on, and have the hypervisor's slots suit it.

        One that serves both a kernel and user mode, which Xen allows, would show user mode what is the kernel's. Raises XenError: EINVAL
        for that, or as `hold` does.
        """
        if self._bases[not kernel][mfn]:
            raise XenError(Errno.EINVAL, f"mfn {mfn:#x} serves the {'user mode' if kernel else 'kernel'} already")
        self.hold(mfn, FrameType.L4, checkpoint)
        self._bases[kernel][mfn] += 1
        self.types.set_role(mfn, kernel=kernel)

    def drop_base(self, mfn: int, checkpoint: Checkpoint = no_checkpoint, *, kernel: bool) -> None:
        """Give back what `take_base` took."""
        self._bases[kernel][mfn] -= 1
        if not self._bases[kernel][mfn]:
            del self._bases[kernel][mfn]
        self.release(mfn, checkpoint)

    def moved_base(self, old: int, new: int, *, kernel: bool) -> None:
        """Take note that in-guest code has exchanged a vCPU's reference to an L4 for one to another; 0 is none."""
        for mfn, change in ((old, -1), (new, 1)):
            if mfn:
                for counter in (self.held, self._bases[kernel]):
                    counter[mfn] += change
                    if not counter[mfn]:
                        del counter[mfn]

    def tables_of(self, vcpu_id: int) -> DescriptorTables:
        """Return the descriptor tables of a vCPU."""
        return self._descriptor_tables.setdefault(vcpu_id, DescriptorTables(self))
