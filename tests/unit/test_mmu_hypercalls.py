"""The MMU hypercalls' own rules: whom they name, how much they did, what they ask of vCPUs; and descriptors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmu_rig import (
    ARGUMENTS,
    BASE,
    DOMID,
    FREE,
    L1,
    L3,
    L4,
    OTHER_DOMID,
    PAGES,
    POOL,
    PRESENT,
    RW,
    P,
    Rig,
    audited_rig,
    slot,
    to,
    va,
)

from xenpy.errors import Errno, XenError
from xenpy.memory import PAGE_SHIFT, PAGE_SIZE
from xenpy.pv.mmu.descriptors import FLAT_KERNEL_CS, fix_descriptor
from xenpy.pv.mmu.layout import KERNEL_ROLE, FrameType

if TYPE_CHECKING:
    from collections.abc import Iterator

SELF, DOMID_IO, DOMID_XEN, NOBODY = 0x7FF0, 0x7FF1, 0x7FF2, 99
PREEMPTED = 1 << 31
DONE = PAGE_SIZE - 8
A, B = FREE, FREE + 1
(TLB_FLUSH_LOCAL, INVLPG_LOCAL, TLB_FLUSH_MULTI, INVLPG_MULTI, TLB_FLUSH_ALL, INVLPG_ALL, FLUSH_CACHE, SET_LDT) = range(
    6, 14
)
NEW_BASEPTR, NEW_USER_BASEPTR, FLUSH_CACHE_GLOBAL, MARK_SUPER, UNMARK_SUPER = 5, 15, 18, 19, 20
HYPERVISOR_VA = 0xFFFF_8080_0000_0000


@pytest.fixture
def rig() -> Iterator[Rig]:
    with audited_rig() as made:
        yield made


def new_l4(rig: Rig, mfn: int) -> int:
    """Make a frame look like an L4 with the same tables below."""
    rig.put(mfn, 0, to(L3))
    return mfn


# -- whom a call names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("domid", "update", "extended"),
    [
        (DOMID, Errno.ESRCH, Errno.ESRCH),
        (NOBODY, Errno.ESRCH, Errno.ESRCH),
        (OTHER_DOMID, Errno.EPERM, Errno.EPERM),
        (DOMID_XEN, Errno.EPERM, Errno.EPERM),
        (DOMID_IO, Errno.EBUSY, Errno.EPERM),
    ],
)
def test_foreign_domains(rig: Rig, domid: int, update: Errno, extended: Errno) -> None:
    assert rig.update((slot(L1, 99), to(A)), domid=domid) == (-update, 0)
    assert rig.extended((0, A, 0), domid=domid) == (-extended, 0)
    other = Errno.EPERM if domid == DOMID_IO else extended
    assert rig.hypercall(22, va(A), to(A), 0, domid) == -other


def test_io_space(rig: Rig) -> None:
    assert rig.update((slot(L1, 99), to(0xB8)), domid=DOMID_IO) == (-Errno.EPERM, 0)
    assert rig.update((slot(L1, 99), to(POOL)), domid=DOMID_IO) == (-Errno.EBUSY, 0)
    assert rig.update((slot(L1, 99), 0), domid=DOMID_IO) == (0, 1)
    assert rig.update((slot(L3, 99), 0), domid=DOMID_IO) == (-Errno.EINVAL, 0)
    assert rig.update((slot(A, 0) | 1, 0), domid=DOMID_IO) == (-Errno.EINVAL, 0)


@pytest.mark.parametrize(
    ("owner", "result"), [(DOMID + 1, 0), (OTHER_DOMID + 1, -Errno.EPERM), (NOBODY + 1, -Errno.ESRCH)]
)
def test_tables_of_other_domains(rig: Rig, owner: int, result: int) -> None:
    assert rig.update((slot(L1, 99), to(A)), domid=owner << 16 | SELF)[0] == result


def test_the_calls_are_for_pv_guests(rig: Rig) -> None:
    rig.is_pv = False
    for number in (1, 2, 10, 14, 22, 26):
        assert rig.hypercall(number) == -Errno.ENOSYS
    rig.is_pv = True


# -- how much was done ------------------------------------------------------------------------------------------------


def test_long_arrays_let_others_in(rig: Rig) -> None:
    gva = rig.arguments(*(word for index in range(240) for word in (slot(A, index), index)))
    assert rig.hypercall(1, gva, 240, gva + DONE, SELF) == 0
    assert rig.argument(DONE, 4) == 240
    assert rig.checkpoints == 1
    assert [rig.entry(A, index) for index in range(240)] == list(range(240))


def test_an_array_that_leaves_memory_counts_up_to_there(rig: Rig) -> None:
    offset = PAGE_SIZE - 32
    gva = rig.arguments(slot(A, 0), 1, slot(A, 1), 2, offset=offset)
    done = rig.arguments(0, offset=0)
    assert rig.hypercall(1, gva, 3, done, SELF) == -Errno.EFAULT
    assert rig.argument(0, 4) == 2
    assert rig.hypercall(26, gva, 1, done, SELF) == -Errno.ENOSYS
    assert rig.hypercall(26, gva + 16, 1, done, SELF) == -Errno.EFAULT
    assert rig.argument(0, 4) == 0


def test_the_count_of_a_restarted_call_goes_on(rig: Rig) -> None:
    gva = rig.arguments(slot(A, 0), 1)
    rig.arguments(7, offset=DONE)
    assert rig.hypercall(1, gva, 1 | PREEMPTED, gva + DONE, SELF) == 0
    assert rig.argument(DONE, 4) == 8
    assert rig.hypercall(1, 0, PREEMPTED, 0, SELF) == rig.hypercall(26, 0, PREEMPTED, 0, SELF) == 0


def test_the_count_of_what_was_done_may_be_missing_or_have_no_place(rig: Rig) -> None:
    gva = rig.arguments(slot(A, 0), 5)
    assert rig.hypercall(1, gva, 1, 0, SELF) == rig.hypercall(1, gva, 1, 1 << 40, SELF) == 0


# -- tables in use ----------------------------------------------------------------------------------------------------


def test_changing_the_kernels_tables(rig: Rig) -> None:
    new_l4(rig, A)
    cpu = rig.vcpus[0]
    assert rig.extended((NEW_BASEPTR, A, 0)) == (0, 1)
    assert (cpu.kernel_l4, cpu.asked) == (A, [("base", A)])
    assert rig.counts(A) == (1, 1)
    assert rig.counts(L4) == (2, 1), "mapped and pinned"
    assert rig.mmu.frames.word(A) & KERNEL_ROLE
    assert rig.filled[-2:] == [(A, False), (A, True)]
    assert rig.extended((NEW_BASEPTR, A, 0)) == (0, 1)
    assert cpu.asked == [("base", A)] * 2, "the TLB is flushed all the same"
    assert rig.counts(A) == (1, 1)
    assert rig.extended((NEW_BASEPTR, L1, 0), (NEW_BASEPTR, 0, 0)) == (-Errno.EINVAL, 0)
    assert rig.extended((NEW_BASEPTR, L4, 0)) == (0, 1)
    assert rig.kind(A) is FrameType.NONE


def test_the_users_tables(rig: Rig) -> None:
    new_l4(rig, A)
    cpu = rig.vcpus[0]
    assert rig.extended((NEW_USER_BASEPTR, A, 0)) == (0, 1)
    assert cpu.user_l4 == A
    assert not rig.mmu.frames.word(A) & KERNEL_ROLE
    assert rig.extended((NEW_USER_BASEPTR, A, 0), (NEW_USER_BASEPTR, 0, 0)) == (0, 2)
    assert cpu.asked == [("user_base", A), ("user_base", 0)]
    assert rig.kind(A) is FrameType.NONE


def test_an_l4_shows_what_its_users_may_see(rig: Rig) -> None:
    new_l4(rig, A)
    word = rig.mmu.frames.word
    assert rig.extended((3, A, 0)) == (0, 1)
    assert rig.extended((NEW_USER_BASEPTR, L4, 0)) == (-Errno.EINVAL, 0), "user mode would see what is the kernel's"
    assert rig.extended((NEW_BASEPTR, A, 0), (NEW_USER_BASEPTR, L4, 0)) == (0, 2)
    assert word(A) & KERNEL_ROLE
    assert not word(L4) & KERNEL_ROLE, "no kernel runs on it any more"
    assert rig.extended((NEW_BASEPTR, L4, 0)) == (-Errno.EINVAL, 0), "user mode runs on it"
    assert rig.extended((NEW_USER_BASEPTR, 0, 0), (NEW_BASEPTR, L4, 0), (4, A, 0)) == (0, 3)


# -- flushes ----------------------------------------------------------------------------------------------------------


def test_flushes(rig: Rig) -> None:
    asked = rig.vcpus[0].asked
    assert rig.extended(
        (TLB_FLUSH_LOCAL, 0, 0), (INVLPG_LOCAL, 0x5000, 0), (TLB_FLUSH_ALL, 0, 0), (INVLPG_ALL, 0x6000, 0)
    ) == (0, 4)
    assert asked == [("flush",), ("invlpg", 0x5000), ("flush_on", None, None), ("flush_on", None, 0x6000)]
    asked.clear()
    rig.arguments(0xFFFF_FFFF_FFFF_FFFE, offset=0x800)
    mask = va(ARGUMENTS) + 0x800
    assert rig.extended((TLB_FLUSH_MULTI, 0, mask), (INVLPG_MULTI, 0x5000, mask)) == (0, 2)
    assert asked == [("flush_on", [1], None), ("flush_on", [1], 0x5000)]
    assert rig.extended((TLB_FLUSH_MULTI, 0, 1 << 40)) == (-Errno.EINVAL, 0)
    asked.clear()
    assert rig.extended((INVLPG_LOCAL, HYPERVISOR_VA, 0), (INVLPG_ALL, HYPERVISOR_VA, 0)) == (0, 2)
    assert asked == []


@pytest.mark.parametrize(
    ("command", "errno"),
    [
        (FLUSH_CACHE, Errno.EACCES),
        (FLUSH_CACHE_GLOBAL, Errno.EINVAL),
        (MARK_SUPER, Errno.EOPNOTSUPP),
        (UNMARK_SUPER, Errno.EOPNOTSUPP),
        (14, Errno.ENOSYS),
        (21, Errno.ENOSYS),
        (0xFFFFFFFF, Errno.ENOSYS),
    ],
)
def test_what_a_domu_may_not_or_nobody_can(rig: Rig, command: int, errno: Errno) -> None:
    assert rig.extended((TLB_FLUSH_LOCAL, 0, 0), (command, 0, 0), (TLB_FLUSH_LOCAL, 0, 0)) == (-errno, 1)


# -- descriptors ------------------------------------------------------------------------------------------------------

CODE64, DATA = 0x00AF_9A00_0000_FFFF, 0x00CF_9200_0000_FFFF
DPL3, ACCESSED, PRESENT_BIT = 3 << 45, 1 << 40, 1 << 47
CALL_GATE = 0x0000_8C00_0000_0000


def gate(selector: int, dpl: int = 0, reserved: int = 0) -> int:
    return CALL_GATE | selector << 16 | dpl << 45 | reserved << 32 | 0x1234


@pytest.mark.parametrize(
    ("descriptor", "fixed"),
    [
        (0, 0),
        (CODE64, CODE64 | DPL3 | ACCESSED),
        (DATA, DATA | DPL3 | ACCESSED),
        (DATA | 1 << 45, DATA | DPL3 | ACCESSED),
        (CODE64 & ~PRESENT_BIT, CODE64 & ~PRESENT_BIT),
        (0x0000_8900_0000_0067 & ~PRESENT_BIT, 0x0000_8900_0000_0067 & ~PRESENT_BIT),
        (PRESENT_BIT | 0x1234, PRESENT_BIT | 0x1234),
        (gate(0x33, 3), gate(0x33)),
        (gate(0x30, 1), gate(0x33)),
        (gate(FLAT_KERNEL_CS, 2), gate(FLAT_KERNEL_CS)),
        (gate(0xFFFC, 3), gate(0xFFFF)),
    ],
)
def test_descriptors_are_made_safe(rig: Rig, descriptor: int, fixed: int) -> None:
    assert fix_descriptor(descriptor) == fixed
    assert rig.hypercall(10, slot(A, 3), descriptor) == 0
    assert rig.entry(A, 3) == fixed


@pytest.mark.parametrize(
    "descriptor",
    [
        0x0000_8900_0000_0067,  # TSS
        0x0000_8200_0000_0FFF,  # LDT
        0x0000_8E00_0000_0000 | 0x33 << 16,  # interrupt gate
        gate(0xE008),
        gate(0x33, reserved=1),
    ],
)
def test_descriptors_that_cannot_be(rig: Rig, descriptor: int) -> None:
    assert rig.hypercall(10, slot(A, 3), descriptor) == -Errno.EINVAL
    rig.put(A, 9, descriptor)
    assert gdt(rig, [A], 512) == -Errno.EINVAL
    assert rig.counts(A) == (0, 0)


@given(st.integers(0, (1 << 64) - 1))
def test_no_descriptor_gives_privileges(descriptor: int) -> None:
    try:
        fixed = fix_descriptor(descriptor)
    except XenError:
        return
    assert fix_descriptor(fixed) == fixed or not fixed >> 44 & 1, "what was checked passes again"
    if fixed & PRESENT_BIT and fixed >> 44 & 1:
        assert fixed >> 45 & 3 == 3
    if fixed & PRESENT_BIT and not fixed >> 44 & 1:
        assert fixed >> 40 & 0xF in (0, 0xC)


def gdt(rig: Rig, frames: list[int], entries: int) -> int:
    return rig.hypercall(2, rig.arguments(*frames), entries)


def test_the_gdt(rig: Rig) -> None:
    rig.put(A, 2, CODE64)
    assert gdt(rig, [A, B], 513) == 0
    assert rig.vcpus[0].asked == [("gdt", (A, B), 513)]
    assert [rig.kind(A), rig.kind(B)] == [FrameType.SEGDESC] * 2
    assert rig.entry(A, 2) == CODE64 | DPL3 | ACCESSED
    assert rig.update((slot(L1, 99), to(A))) == (-Errno.EBUSY, 0)
    assert rig.update((slot(L1, 99), to(A, P)), (slot(L1, 99), 0)) == (0, 2)
    assert rig.update((slot(A, 1), 0)) == (-Errno.EINVAL, 0)
    assert rig.hypercall(10, slot(A, 1), DATA) == 0
    assert rig.entry(A, 1) == DATA | DPL3 | ACCESSED
    assert gdt(rig, [B], 8) == 0
    assert [rig.kind(A), rig.kind(B)] == [FrameType.NONE, FrameType.SEGDESC]
    assert rig.hypercall(2, 0, 0) == 0
    assert rig.kind(B) is FrameType.NONE


def test_a_gdt_that_cannot_be_keeps_the_old_one(rig: Rig) -> None:
    assert gdt(rig, [A], 512) == 0
    for frames, entries in (([B, L1], 1024), ([B, ARGUMENTS], 1024), ([B, BASE + PAGES], 1024), ([B] * 15, 7169)):
        assert gdt(rig, frames, entries) == -Errno.EINVAL
    assert rig.counts(B) == (0, 0)
    assert rig.mmu.tables_of(0).gdt == (A,)
    assert rig.hypercall(2, 1 << 40, 8) == -Errno.EFAULT
    assert gdt(rig, [B] * 14, 7168) == 0
    assert rig.counts(B) == (14, 14)


@pytest.mark.parametrize("gpa", [slot(L1, 3), slot(A, 3) + 4, slot(BASE + PAGES, 0), POOL << PAGE_SHIFT])
def test_where_no_descriptor_can_be(rig: Rig, gpa: int) -> None:
    assert rig.hypercall(10, gpa, DATA) == -Errno.EINVAL


def test_the_ldt(rig: Rig) -> None:
    rig.put(A, 0, DATA)
    assert rig.update((slot(L1, 40), to(A, PRESENT)), (slot(L1, 42), to(ARGUMENTS, PRESENT))) == (0, 2)
    base = 40 << PAGE_SHIFT
    assert rig.extended((SET_LDT, base, 1025)) == (0, 1)
    assert rig.vcpus[0].asked == [("ldt", base, 1025)]
    assert rig.mmu.tables_of(0).ldt == (A, 0, 0), "one page is not mapped, one is writable"
    assert rig.counts(A) == (2, 1)
    assert rig.entry(A, 0) == DATA | DPL3 | ACCESSED
    for gva, entries in ((base + 8, 1), (base, 8193), (HYPERVISOR_VA, 1)):
        assert rig.extended((SET_LDT, gva, entries)) == (-Errno.EINVAL, 0)
    assert rig.extended((SET_LDT, 0x123, 0)) == (0, 1)
    assert rig.vcpus[0].asked[-1] == ("ldt", 0, 0)
    assert rig.counts(A) == (1, 0)
    assert rig.update((slot(L1, 40), to(A, PRESENT | RW))) == (0, 1)
