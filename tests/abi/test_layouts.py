"""Our structures against the public headers, by the C compiler: sizes, and the offset and size of each field."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from conformance import KVM_HEADERS, XEN_HEADERS, Claim, refuted, require

from xenpy.abi import _kvm, _libc, _xen64
from xenpy.abi._xen32 import LAYOUTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

LIBC_HEADERS = ("signal.h", "time.h")
PADDING = re.compile(r"(^|\.)_?(pad\d*|padding\d*|reserved\d*|rsvd|unused)(\[\d+\])?$")

# Arrays of no fixed length in the headers, of a bounded one in ours.
OPEN_ENDED = {"kvm_cpuid2": "entries", "kvm_msrs": "entries", "kvm_irq_routing": "entries", "kvm_xsave": ""}
# Our fields -> the headers', where theirs are nested deeper; "" where only newer headers have the field.
RENAMED = {
    "vcpu_register_runstate_memory_area.p": "addr.p",
    "vcpu_register_time_memory_area.p": "addr.p",
    "xen_add_to_physmap_batch.foreign_domid": "u.foreign_domid",
    "kvm_guest_debug.debugreg": "arch.debugreg",
    "kvm_run.debug.exception": "debug.arch.exception",
    "kvm_run.debug.pc": "debug.arch.pc",
    "kvm_run.debug.dr6": "debug.arch.dr6",
    "kvm_run.debug.dr7": "debug.arch.dr7",
    "kvm_run.memory_fault.flags": "",  # Linux 6.8
    "kvm_run.memory_fault.gpa": "",
    "kvm_run.memory_fault.size": "",
    "xenpy_sigevent.sigev_notify_thread_id": "_sigev_un._tid",
    "xenpy_itimerspec.interval_sec": "it_interval.tv_sec",
    "xenpy_itimerspec.interval_nsec": "it_interval.tv_nsec",
    "xenpy_itimerspec.value_sec": "it_value.tv_sec",
    "xenpy_itimerspec.value_nsec": "it_value.tv_nsec",
}
PV_ONLY = {"arch_vcpu_info", "callback_register"}
"""Structures that only PV guests pass, which are 64-bit guests: the i386 form is of no use to us."""
WIDE_ONLY = {
    "arch_shared_info",
    "cpu_user_regs",
    "iret_context",
    "shared_info",
    "start_info",
    "vcpu_guest_context",
    "vcpu_info",
}


def structures(ffi: Any) -> list[str]:
    return list(ffi.list_types()[1])


XEN32 = sorted({tag.removeprefix("struct ") for tag in LAYOUTS} - PV_ONLY)


def leaves(ffi: Any, ctype: Any, path: str = "", base: int = 0) -> Iterator[tuple[str, int, int]]:
    """Yield the (path, offset, size) of the fields of a structure, nested ones instead of what nests them."""
    for name, field in ctype.fields:
        dotted = f"{path}.{name}" if path and name else path or name
        if field.type.kind in ("struct", "union"):
            yield from leaves(ffi, field.type, dotted, base + field.offset)
        else:
            yield dotted, base + field.offset, ffi.sizeof(field.type)


def claims_for(tag: str, size: int, fields: Iterable[tuple[str, int, int]]) -> Iterator[Claim]:
    real = f"struct {tag.removeprefix('xenpy_')}"
    if tag not in OPEN_ENDED:
        yield Claim(tag, f"sizeof({real}) == {size}")
    for path, offset, field_size in fields:
        named = RENAMED.get(f"{tag}.{path}", path)
        if named and not PADDING.search(named):
            yield Claim(tag, f"offsetof({real}, {named}) == {offset}")
            if path != OPEN_ENDED.get(tag):
                yield Claim(tag, f"sizeof((({real} *)0)->{named}) == {field_size}")


def cffi_claims(ffi: Any) -> Iterator[Claim]:
    for tag in structures(ffi):
        ctype = ffi.typeof(f"struct {tag}")
        yield from claims_for(tag, ffi.sizeof(ctype), leaves(ffi, ctype))


@cache
def wrong_in_xen64() -> dict[str, list[str]]:
    return refuted(XEN_HEADERS, cffi_claims(_xen64.ffi))


@cache
def wrong_in_xen32() -> dict[str, list[str]]:
    claims: list[Claim] = []
    for tag in XEN32:
        size, fields = LAYOUTS[f"struct {tag}"]
        claims += claims_for(tag, size, ((path, offset, abs(width)) for path, offset, width, _, _ in fields))
    return refuted(XEN_HEADERS, claims, bits=32)


@cache
def wrong_in_kvm() -> dict[str, list[str]]:
    return refuted(KVM_HEADERS, cffi_claims(_kvm.ffi))


@cache
def wrong_in_libc() -> dict[str, list[str]]:
    return refuted(LIBC_HEADERS, cffi_claims(_libc.ffi))


@pytest.mark.parametrize("tag", structures(_xen64.ffi))
def test_64_bit_structures_of_xen(tag: str) -> None:
    require(XEN_HEADERS)
    assert wrong_in_xen64().get(tag, []) == []


@pytest.mark.parametrize("tag", XEN32)
def test_32_bit_structures_of_xen(tag: str) -> None:
    require(XEN_HEADERS)
    assert wrong_in_xen32().get(tag, []) == []


@pytest.mark.parametrize("tag", structures(_kvm.ffi))
def test_structures_of_kvm(tag: str) -> None:
    require(KVM_HEADERS)
    assert wrong_in_kvm().get(tag, []) == []


@pytest.mark.parametrize("tag", structures(_libc.ffi))
def test_structures_of_the_c_library(tag: str) -> None:
    require(LIBC_HEADERS)
    assert wrong_in_libc().get(tag, []) == []


def test_the_compiler_complained_of_no_header() -> None:
    require((*XEN_HEADERS, *KVM_HEADERS, *LIBC_HEADERS))
    assert wrong_in_xen64().keys() <= set(structures(_xen64.ffi))
    assert wrong_in_xen32().keys() <= set(XEN32)
    assert wrong_in_kvm().keys() <= set(structures(_kvm.ffi))
    assert wrong_in_libc().keys() <= set(structures(_libc.ffi))


def test_every_structure_of_a_hypercall_is_known_in_both_layouts() -> None:
    assert {tag.removeprefix("struct ") for tag in LAYOUTS} == set(structures(_xen64.ffi)) - WIDE_ONLY


@pytest.mark.parametrize("tag", sorted(LAYOUTS))
def test_the_64_bit_half_of_the_conversion_table_is_that_of_cffi(tag: str) -> None:
    ctype = _xen64.ffi.typeof(tag)
    ours = {path: (offset, size) for path, offset, size in leaves(_xen64.ffi, ctype)}
    whole = {row[0]: (row[3], abs(row[4])) for row in LAYOUTS[tag][1] if not row[0].endswith("]")}
    assert whole.items() <= ours.items()


@pytest.mark.parametrize("bits", [32, 64])
def test_a_wrong_claim_is_refuted(bits: int) -> None:
    require(XEN_HEADERS)
    claims = [
        Claim("right", "sizeof(struct sched_shutdown) == 4"),
        Claim("wrong", "sizeof(struct sched_shutdown) == 1"),
        Claim("unknown", "sizeof(struct no_such) == 0"),
    ]
    assert refuted(XEN_HEADERS, claims, bits=bits).keys() == {"wrong", "unknown"}
