"""Argument copies: both ABIs, across pages, and out of memory."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from fakes import RAM_SIZE, UNMAPPED, FakeDomain, fake_domain
from hypothesis import given, settings
from hypothesis import strategies as st

from xenpy.abi._xen32 import LAYOUTS
from xenpy.abi._xen64 import ffi
from xenpy.errors import Errno, XenError
from xenpy.hypercalls.call import struct_size
from xenpy.memory import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

TAGS = sorted(tag.removeprefix("struct ") for tag in LAYOUTS)


@pytest.fixture(scope="module")
def domain() -> Iterator[FakeDomain]:
    with fake_domain() as made:
        yield made


def faults(function, *args) -> None:
    with pytest.raises(XenError) as caught:
        function(*args)
    assert caught.value.errno is Errno.EFAULT


@settings(max_examples=50)
@given(gva=st.integers(0, RAM_SIZE - 3 * PAGE_SIZE), data=st.binary(min_size=1, max_size=2 * PAGE_SIZE + 10))
def test_bytes_come_back_as_written(domain: FakeDomain, gva: int, data: bytes) -> None:
    call = domain.call(0)
    call.write(gva, data)
    assert call.read(gva, len(data)) == data


def test_pages_that_follow_each_other_may_lie_anywhere(domain: FakeDomain) -> None:
    call = domain.call(0)
    domain.vcpus[0].remapped = {0xFFFF_8880_0000_0000 >> 12: 9, (0xFFFF_8880_0000_0000 >> 12) + 1: 3}
    gva = 0xFFFF_8880_0000_0FFE
    try:
        call.write(gva, b"abcd")
        assert domain.memory.read(0x9FFE, 2) == b"ab"
        assert domain.memory.read(0x3000, 2) == b"cd"
        assert call.read(gva, 4) == b"abcd"
    finally:
        domain.vcpus[0].remapped = {}


@pytest.mark.parametrize("gva", [RAM_SIZE, RAM_SIZE - 1, UNMAPPED, 1 << 47, (1 << 64) - 1])
@pytest.mark.parametrize("size", [2, 5000])
def test_addresses_out_of_memory_fault(domain: FakeDomain, gva: int, size: int) -> None:
    call = domain.call(0)
    faults(call.read, gva, size)
    faults(call.write, gva, bytes(size))
    faults(call.words, gva, size // 2, 2)
    faults(call.struct, "gnttab_copy", gva)


def test_a_page_that_is_read_only_takes_no_result(domain: FakeDomain) -> None:
    call = domain.call(0)
    domain.vcpus[0].readonly = {5}
    try:
        assert call.read(0x5000, 4) == bytes(4)
        faults(call.write, 0x5000, b"1234")
        faults(call.write, 0x4FFE, b"1234")
    finally:
        domain.vcpus[0].readonly = set()


def test_arrays_are_bounded(domain: FakeDomain) -> None:
    call = domain.call(0)
    faults(call.read, 0, (1 << 20) + 1)
    faults(call.words, 0, 1 << 40)
    faults(call.write, 0, bytes((1 << 20) + 1))


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("size", [0, 1, 2, 4, 8])
def test_numbers_lose_their_excess_bits(domain: FakeDomain, wide: bool, size: int) -> None:
    call = domain.call(0, wide=wide)
    width = size or (8 if wide else 4)
    values = [-1, -22, 1 << 63, 5]
    call.store_words(0xFFD, values, size)
    assert call.words(0xFFD, 4, size) == tuple(value & (1 << 8 * width) - 1 for value in values)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("gva", [0x1000, 0x2FFD])
def test_a_structure_stored_is_the_structure_loaded(domain: FakeDomain, tag: str, wide: bool, gva: int) -> None:
    call = domain.call(0, wide=wide)
    size = call.struct_size(tag)
    pattern = bytes(index % 251 + 1 for index in range(size))
    domain.memory.write(gva, pattern + b"\xee" * 16)
    value = call.struct(tag, gva)
    domain.memory.write(gva, bytes(size))
    call.store(tag, gva, value)
    stored = domain.memory.read(gva, size + 16)
    assert stored[size:] == b"\xee" * 16
    if wide:
        assert stored[:size] == pattern
        return
    # Only padding may be lost on the way through the other layout.
    for path, offset, width, _, _ in LAYOUTS[f"struct {tag}"][1]:
        end = offset + abs(width)
        assert stored[offset:end] == pattern[offset:end], path


def test_sizes_in_both_layouts(domain: FakeDomain) -> None:
    wide, narrow = domain.call(0), domain.call(0, wide=False)
    assert (wide.word_size, narrow.word_size) == (8, 4)
    assert (wide.struct_size("multicall_entry"), narrow.struct_size("multicall_entry")) == (64, 32)
    assert (wide.struct_size("sched_poll"), narrow.struct_size("sched_poll")) == (24, 16)
    assert struct_size("sched_poll") == 24


@settings(max_examples=50)
@given(ports=st.integers(0, (1 << 32) - 1), count=st.integers(0, (1 << 32) - 1), timeout=st.integers(0, (1 << 64) - 1))
def test_32_bit_structures_are_widened(domain: FakeDomain, ports: int, count: int, timeout: int) -> None:
    call = domain.call(0, wide=False)
    domain.memory.write(0x1FFA, struct.pack("<IIQ", ports, count, timeout))
    poll = call.struct("sched_poll", 0x1FFA)
    assert (poll.ports, poll.nr_ports, poll.timeout) == (ports, count, timeout)


def test_signed_fields_keep_their_sign_and_byte_arrays_their_bytes(domain: FakeDomain) -> None:
    call = domain.call(0, wide=False)
    op = ffi.new("struct gnttab_query_size *")
    op.dom, op.status, op.nr_frames = 3, -8, 17
    call.store("gnttab_query_size", 0x1000, op)
    back = call.struct("gnttab_query_size", 0x1000)
    assert (back.dom, back.status, back.nr_frames) == (3, -8, 17)
    info = ffi.new("struct xen_compile_info *")
    info.compiler = b"compiler"
    call.store("xen_compile_info", 0x1000, info)
    assert domain.memory.read(0x1000, 9) == b"compiler\0"
