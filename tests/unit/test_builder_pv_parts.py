"""Pieces of the PV builder that are tested best by themselves."""

from __future__ import annotations

import os
from array import array

from hypothesis import given, settings
from hypothesis import strategies as st

from xenpy import libc
from xenpy.builder.pv_stubs import STUB_SIZE, pv_hypercall_page
from xenpy.builder.pv_tables import Pages, PageTables, fill_ascending
from xenpy.memory import PAGE_SIZE

GETPID, GETUID, GETPPID = 39, 102, 110  # of this host's own system calls, which Xen's stubs reach when they run here


def test_stubs_are_entered_and_left_like_functions() -> None:
    """The stub's number is that of a system call here: each must return what the kernel does for that number."""
    fd = os.memfd_create("stubs")
    os.write(fd, pv_hypercall_page())
    page = libc.map_memory(0, PAGE_SIZE, libc.PROT_READ | libc.PROT_EXEC, libc.MAP_PRIVATE, fd)
    os.close(fd)
    for number, answer in ((GETPID, os.getpid()), (GETUID, os.getuid()), (GETPPID, os.getppid())):
        stub = libc.native_function(page + number * STUB_SIZE, "uint64_t(*)(void)")
        for _ in range(100):
            assert stub() == answer
    libc.unmap_memory(page, PAGE_SIZE)


def test_the_stub_of_iret_pushes_what_its_frame_begins_with() -> None:
    page = pv_hypercall_page()
    assert len(page) == PAGE_SIZE
    # push rcx; push r11; push rax; mov eax, 23; syscall
    assert page[23 * 32 : 24 * 32] == bytes.fromhex("51 4153 50 b817000000 0f05").ljust(32, b"\xcc")
    # push rcx; push r11; mov eax, 127; syscall; pop r11; pop rcx; ret
    assert page[127 * 32 :] == bytes.fromhex("51 4153 b87f000000 0f05 415b 59 c3").ljust(32, b"\xcc")


@settings(max_examples=60)
@given(
    first=st.one_of(
        st.integers(0, 1 << 40), st.sampled_from([0xFFFF, 0x10000, 0xFFFFFFFE, (1 << 32) - 70000, 1 << 63])
    ),
    count=st.one_of(st.integers(0, 2000), st.integers(0, 200_000)),
)
def test_ascending_numbers(first: int, count: int) -> None:
    words = array("Q", [0xAAAA_AAAA_AAAA_AAAA]) * (count + 2)
    view = memoryview(words)
    fill_ascending(view[1:-1], first)
    guard = 0xAAAA_AAAA_AAAA_AAAA
    assert words == array("Q", [guard, *range(first, first + count), guard])


def test_tables_that_a_range_needs() -> None:
    tables = PageTables()
    keys = tables.missing(0xFFFF_FFFF_FFE0_0000, 1 << 64)
    assert keys == [(4, 0), (3, 511), (2, 511 * 512 + 511), (1, (1 << 27) - 1)]
    tables.place(keys, 7)
    assert tables.levels(0x200) == {0x207: 4, 0x208: 3, 0x209: 2, 0x20A: 1}
    assert tables.missing(0xFFFF_FFFF_FFE0_0000, 1 << 64) == []
    assert tables.missing(0xFFFF_FFFF_FFDF_F000, 1 << 64) == [(1, (1 << 27) - 2)]
    assert Pages(3, 4).end == 7
