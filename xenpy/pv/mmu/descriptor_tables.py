"""The frames that hold a vCPU's GDT and LDT, which stay pages of descriptors for as long as the vCPU uses them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenpy.errors import XenError
from xenpy.pv.mmu.layout import FrameType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xenpy.pv.mmu.held import Held


class DescriptorTables:
    """The guest's part of one vCPU's GDT, and its LDT. `ldt` has 0 for a page that is not there."""

    def __init__(self, mmu: Held) -> None:
        self._mmu = mmu
        self.gdt: tuple[int, ...] = ()
        self.ldt: tuple[int, ...] = ()

    def replace_gdt(self, mfns: Sequence[int]) -> None:
        """Use other frames. Raises XenError(EINVAL), keeping the old ones, when one cannot hold descriptors."""
        taken: list[int] = []
        try:
            for mfn in mfns:
                self._mmu.hold(mfn, FrameType.SEGDESC)
                taken.append(mfn)
        except XenError:
            self._release(taken)
            raise
        old, self.gdt = self.gdt, tuple(taken)
        self._release(old)

    def replace_ldt(self, mfns: Sequence[int]) -> None:
        """Use other frames; one that cannot hold descriptors counts as not there."""
        taken: list[int] = []
        for mfn in mfns:
            try:
                self._mmu.hold(mfn, FrameType.SEGDESC)
                taken.append(mfn)
            except XenError:
                taken.append(0)
        old, self.ldt = self.ldt, tuple(taken)
        self._release(old)

    def clear(self) -> None:
        """Use no frames any more."""
        self.replace_gdt(())
        self.replace_ldt(())

    def _release(self, mfns: Sequence[int]) -> None:
        for mfn in mfns:
            if mfn:
                self._mmu.release(mfn)
