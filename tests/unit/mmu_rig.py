"""A PV guest's memory with its MMU and no KVM: real words and page tables, and a record of what was stored for shadow paging to see."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from xenpy.abi._xen64 import ffi
from xenpy.errors import Errno, XenError
from xenpy.hypercalls import dispatch
from xenpy.hypercalls.call import Call
from xenpy.memory import PAGE_SHIFT, PAGE_SIZE, GuestMemory
from xenpy.pv import paging
from xenpy.pv.mmu import Mappable, Mmu
from xenpy.pv.mmu.layout import COUNT_MASK, FrameType, refs_of, type_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BASE = 0x400
PAGES = 96
POOL = 0x10
READ_ONLY = POOL + 1
PRESENT, RW, USER = paging.PTE_PRESENT, paging.PTE_RW, paging.PTE_USER
P, PRW = PRESENT | USER, PRESENT | RW | USER
XEN_ENTRY = 0xABC000 | PRESENT
NX = 1 << 63
GLOBAL, PSE, PWT, PCD, ACCESSED, DIRTY = 1 << 8, 1 << 7, 1 << 3, 1 << 4, 1 << 5, 1 << 6
PIN_L1, PIN_L2, PIN_L3, PIN_L4, UNPIN = range(5)
DOMID, OTHER_DOMID = 7, 8

L4, L3, L2, L1 = BASE, BASE + 1, BASE + 2, BASE + 3
"""The tables of `Rig.start`: one L1, which maps its 512 pages from address 0."""
ARGUMENTS = BASE + 4
"""A page for hypercall arguments, mapped writable at its own index."""
FREE = BASE + 8
"""From here on no frame is used by `Rig.start`."""
A, B, C, D = FREE, FREE + 1, FREE + 2, FREE + 3

dispatch.load()


def va(mfn: int) -> int:
    """Return the address at which the first L1 has room for a frame of this number."""
    return (mfn - BASE) << PAGE_SHIFT


def to(mfn: int, flags: int = PRW) -> int:
    """Return an entry that leads to a frame."""
    return mfn << PAGE_SHIFT | flags


def slot(mfn: int, index: int) -> int:
    """Return the machine address of an entry of a table."""
    return (mfn << PAGE_SHIFT) + index * 8


class RigVcpu:
    """A vCPU that records what it is asked to do. Its addresses go through the guest's page tables."""

    def __init__(self, rig: Rig, vcpu_id: int) -> None:
        self.rig = rig
        self.vcpu_id = vcpu_id
        self.kernel_l4 = 0
        self.user_l4 = 0
        self.asked: list[tuple[Any, ...]] = []
        self.flat: int | None = None
        """Machine address of address 0, instead of page tables."""

    def translate(self, gva: int, *, write: bool = False) -> int:
        if self.flat is not None:
            return gva + self.flat
        cr0 = paging.CR0_PE | paging.CR0_PG | paging.CR0_WP
        efer = paging.EFER_LME | paging.EFER_LMA
        return paging.translate(
            self.rig.memory, cr0, self.kernel_l4 << PAGE_SHIFT, paging.CR4_PAE, efer, gva, write=write
        )

    def load_base(self, mfn: int) -> None:
        self.kernel_l4 = mfn
        self.asked.append(("base", mfn))

    def load_user_base(self, mfn: int) -> None:
        self.user_l4 = mfn
        self.asked.append(("user_base", mfn))

    def flush_tlb(self) -> None:
        self.asked.append(("flush",))

    def invlpg(self, gva: int) -> None:
        self.asked.append(("invlpg", gva))

    def flush_on(self, vcpu_ids: Any, gva: int | None) -> None:
        self.asked.append(("flush_on", vcpu_ids, gva))

    def set_ldt(self, gva: int, entries: int) -> None:
        self.asked.append(("ldt", gva, entries))

    def set_gdt(self, mfns: tuple[int, ...], entries: int) -> None:
        self.asked.append(("gdt", mfns, entries))

    def forget_selectors(self) -> None:
        self.asked.append(("forget_selectors",))


class Rig:
    """The domain: `PAGES` frames from `BASE`, all the guest's, beside one frame of the hypervisor's that it may map and one read-only."""

    def __init__(self, pages: int = PAGES) -> None:
        self.domid = DOMID
        self.is_pv = True
        self.memory = GuestMemory()
        self.memory.add_ram(BASE << PAGE_SHIFT, pages << PAGE_SHIFT)
        self.words = memoryview(bytearray(pages * 8)).cast("Q")
        self.m2p = memoryview(bytearray((BASE + pages) * 8)).cast("Q")
        self.stored: list[tuple[int, int]] = []
        self.filled: list[tuple[int, bool]] = []
        self.checkpoints = 0
        self.max_pages = pages
        self.machphys_mfns = (0x200,)
        self.machphys = (0xFFFF_8080_0000_0000, 0xFFFF_8080_2000_0000, BASE + pages - 1)
        self.mmu = Mmu(
            self.memory,
            self.words,
            BASE,
            self.m2p,
            store=self.store,
            mappable=self.mappable,
            fill_hypervisor_slots=self.fill,
        )
        self.vcpus = [RigVcpu(self, 0), RigVcpu(self, 1)]
        self.logged: list[str] = []
        self.on_checkpoint: Callable[[], None] = lambda: None

    # -- what the MMU asks for ----------------------------------------------------------------------------------------

    def store(self, gpa: int, value: int) -> None:
        self.memory.u64[gpa >> 3] = value
        self.stored.append((gpa, value))

    def mappable(self, mfn: int) -> int:
        return {POOL: True, READ_ONLY: Mappable.READ_ONLY}.get(mfn, Mappable.NO)

    def fill(self, mfn: int, kernel: bool) -> None:
        self.filled.append((mfn, kernel))
        self.memory.u64[(mfn << PAGE_SHIFT) + 257 * 8 >> 3] = XEN_ENTRY

    def checkpoint(self) -> None:
        self.checkpoints += 1
        self.on_checkpoint()

    def peer(self, domid: int) -> object:
        if domid != OTHER_DOMID:
            raise XenError(Errno.ESRCH)
        return object()

    def log(self, _key: str, message: str) -> None:
        self.logged.append(message)

    # -- memory -------------------------------------------------------------------------------------------------------

    def put(self, mfn: int, slot: int, value: int) -> None:
        """Write a word behind the MMU's back, as a builder or a guest with a writable mapping does."""
        self.memory.u64[(mfn << PAGE_SHIFT) + slot * 8 >> 3] = value

    def entry(self, mfn: int, slot: int) -> int:
        return int(self.memory.u64[(mfn << PAGE_SHIFT) + slot * 8 >> 3])

    def kind(self, mfn: int) -> FrameType:
        return FrameType(type_of(self.mmu.frames.word(mfn)))

    def counts(self, mfn: int) -> tuple[int, int]:
        """Return (references, type count)."""
        word = self.mmu.frames.word(mfn)
        return refs_of(word), word & COUNT_MASK

    def start(self) -> None:
        """Start the domain on four tables, of which the L1 maps them read-only and `ARGUMENTS` writable; vCPU 0 runs on them."""
        for table, child in ((L4, L3), (L3, L2), (L2, L1)):
            self.put(table, 0, child << PAGE_SHIFT | PRW)
        for mfn in (L4, L3, L2, L1):
            self.put(L1, mfn - BASE, mfn << PAGE_SHIFT | P)
        self.put(L1, ARGUMENTS - BASE, ARGUMENTS << PAGE_SHIFT | PRW)
        self.mmu.adopt({L4: 4, L3: 3, L2: 2, L1: 1}, L4, len(self.words))
        self.mmu.take_base(L4, kernel=True)
        self.vcpus[0].kernel_l4 = L4

    def close(self) -> None:
        self.mmu.destroy()
        self.memory.close()

    # -- hypercalls ---------------------------------------------------------------------------------------------------

    def hypercall(self, number: int, *args: int, vcpu: int = 0) -> int:
        domain: Any = self
        caller: Any = self.vcpus[vcpu]
        call = Call(domain, caller, number, (*args, *[0] * (6 - len(args))), checkpoint=self.checkpoint)
        return dispatch.dispatch(call)

    def arguments(self, *words: int, offset: int = 0) -> int:
        """Write 64-bit words to the page for arguments; return their address."""
        gpa = (ARGUMENTS << PAGE_SHIFT) + offset
        self.memory.write(gpa, b"".join((word & (1 << 64) - 1).to_bytes(8, "little") for word in words))
        return va(ARGUMENTS) + offset

    def argument(self, offset: int, size: int = 8) -> int:
        """Return an unsigned number in the page for arguments."""
        return int.from_bytes(self.memory.read((ARGUMENTS << PAGE_SHIFT) + offset, size), "little")

    def extended(self, *ops: tuple[int, int, int], domid: int = 0x7FF0) -> tuple[int, int]:
        """Make a mmuext_op with (command, arg1, arg2) rows; return its result and how many were done."""
        data = b"".join(
            bytes(ffi.buffer(ffi.new("struct mmuext_op *", {"cmd": c, "arg1": {"mfn": a}, "arg2": {"src_mfn": b}})))
            for c, a, b in ops
        )
        self.memory.write(ARGUMENTS << PAGE_SHIFT, data)
        done = va(ARGUMENTS) + PAGE_SIZE - 8
        result = self.hypercall(26, va(ARGUMENTS), len(ops), done, domid)
        return result, self.argument(PAGE_SIZE - 8, 4)

    def update(self, *pairs: tuple[int, int], domid: int = 0x7FF0) -> tuple[int, int]:
        """Make a mmu_update with (ptr, val) rows; return its result and how many were done."""
        gva = self.arguments(*(word for pair in pairs for word in pair))
        result = self.hypercall(1, gva, len(pairs), va(ARGUMENTS) + PAGE_SIZE - 8, domid)
        return result, self.argument(PAGE_SIZE - 8, 4)


def tree(rig: Rig) -> None:
    """Build an L4, L3, L2 and L1, the last the first that is free, not yet tables, the L1 mapping nothing."""
    for child in range(FREE, FREE + 3):
        rig.put(child + 1, 0, to(child))


@contextmanager
def audited_rig() -> Iterator[Rig]:
    """Make a guest that has started, and see in the end that everything was counted right."""
    made = Rig()
    made.start()
    yield made
    assert made.mmu.frames.mismatches == 0
    assert made.mmu.audit() == []
    made.close()
