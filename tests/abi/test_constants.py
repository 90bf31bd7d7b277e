"""Our numbers against the public headers, by the C compiler."""

from __future__ import annotations

from enum import IntEnum
from importlib import import_module
from typing import TYPE_CHECKING

import pytest
from conformance import KVM_HEADERS, XEN_HEADERS, Claim, refuted, require

from xenpy.abi import _kvm_ioctl, xs_wire
from xenpy.abi.elfnote import FEATURE_NAMES
from xenpy.abi.op import Op
from xenpy.errors import Errno
from xenpy.hypercalls import dispatch
from xenpy.kvm import constants

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

XEN_MODULES = [
    "xenpy.abi.elfnote", "xenpy.abi.event_channel", "xenpy.abi.grant_table", "xenpy.abi.hvm_op", "xenpy.abi.memory",
    "xenpy.abi.mmu", "xenpy.abi.sched", "xenpy.abi.start_info", "xenpy.abi.vcpu", "xenpy.abi.version", "xenpy.abi.xs_wire",
    "xenpy.hypercalls.callback", "xenpy.hypercalls.console_io", "xenpy.hypercalls.physdev",
    "xenpy.hypercalls.vm_assist", "xenpy.pv.hvm_params", "xenpy.pv.version",
]  # fmt: skip

PREFIXES = {
    "MsgType": "", "RingConnection": "", "RingError": "", "ServerFeature": "XENSTORE_SERVER_FEATURE_", "HVM_PARAM": "HVM_PARAM_",
    "Cap": "KVM_CAP_", "Exit": "KVM_EXIT_", "InternalError": "KVM_INTERNAL_ERROR_", "Sync": "KVM_SYNC_X86_",
    "MpState": "KVM_MP_STATE_", "XenConfig": "KVM_XEN_HVM_CONFIG_", "XenAttr": "KVM_XEN_ATTR_TYPE_",
    "XenVcpuAttr": "KVM_XEN_VCPU_ATTR_TYPE_",
}  # fmt: skip
"""What precedes a member's name in C, where it is not the enumeration's own name and "_"."""

RENAMED = {
    "GTF_reading": "(1 << _GTF_reading)",
    "GTF_writing": "(1 << _GTF_writing)",
    "GNTMAP_device_map": "(1 << _GNTMAP_device_map)",
    "GNTMAP_guest_avail0": "_GNTMAP_guest_avail0",
    "CALLBACK_TYPE_GSI": "HVM_PARAM_CALLBACK_TYPE_GSI",
    "CALLBACK_TYPE_PCI_INTX": "HVM_PARAM_CALLBACK_TYPE_PCI_INTX",
    "CALLBACK_TYPE_VECTOR": "HVM_PARAM_CALLBACK_TYPE_VECTOR",
    "GRANT_ENTRY_SIZE_V1": "sizeof(grant_entry_v1_t)",
    "GRANT_ENTRY_SIZE_V2": "sizeof(grant_entry_v2_t)",
    "GRANT_STATUS_SIZE": "sizeof(grant_status_t)",
    "XSD_SOCKMSG_SIZE": "sizeof(struct xsd_sockmsg)",
    "XEN_COMMANDLINE_LEN": "sizeof(xen_commandline_t)",
    "MSR_EXIT_REASON_INVAL": "KVM_MSR_EXIT_REASON_INVAL",
    "MSR_EXIT_REASON_UNKNOWN": "KVM_MSR_EXIT_REASON_UNKNOWN",
    "MSR_EXIT_REASON_FILTER": "KVM_MSR_EXIT_REASON_FILTER",
}
OUR_OWN = {
    "CALLBACK_TYPE_SHIFT", "E820_ENTRY_SIZE", "EVTCHN_FIFO_WORDS_PER_PAGE", "FIRST_USABLE_VECTOR", "INVALID_GFN",
    "IOBITMAP_MAX_PORTS", "IOPL_MAX", "MAX_POLL_PORTS", "PVH_FEATURES", "PV_FEATURES", "XEN_HVM_START_VERSION",
}  # fmt: skip
"""Limits that the headers state in prose, and sizes of what they do not name."""
NEWER = {
    "XEN_ELFNOTE_PHYS32_RELOC", "PHYS32_RELOC_ALIGN", "PHYS32_RELOC_MIN", "PHYS32_RELOC_MAX", "VCPUOP_register_runstate_phys_area",
    "VCPUOP_register_vcpu_time_phys_area", "XENFEAT_runstate_phys_area", "XENFEAT_vcpu_time_phys_area",
    "XENSTORE_SERVER_FEATURE_WATCH_DEPTH", "KVM_INVALID_GPA",
}  # fmt: skip
"""From Xen after 4.17, whose headers Debian 12 has; compared wherever the header at hand has them."""


def numbers(module: ModuleType) -> Iterator[tuple[str, int]]:
    """Yield the C name and value of every constant that a module declares."""
    for name, value in vars(module).items():
        if isinstance(value, type) and issubclass(value, IntEnum) and value.__module__ == module.__name__:
            prefix = PREFIXES.get(name, f"{name}_")
            for member in value:
                yield f"{prefix}{member.name}", int(member)
        elif name.startswith("_") or not name[0].isupper():
            continue
        elif isinstance(value, Op):
            yield name, value.number
        elif type(value) is int and name.isascii() and name not in OUR_OWN:
            yield name, value


def claim(name: str, value: int, *, optional: bool = False) -> Claim:
    expression = f"(unsigned long long)({RENAMED.get(name, name)}) == {value & (1 << 64) - 1}ULL"
    return Claim(name, expression, unless_missing=name if optional or name in NEWER else "")


@pytest.mark.parametrize("name", XEN_MODULES)
def test_constants_of_xen(name: str) -> None:
    require(XEN_HEADERS)
    claims = [claim(*row) for row in numbers(import_module(name)) if not row[0].startswith("RingOffset_")]
    assert len(claims) >= 2
    assert refuted(XEN_HEADERS, claims) == {}


def test_error_numbers() -> None:
    require(XEN_HEADERS)
    internal = {Errno.EINTR, Errno.ERESTART}  # the header keeps them for the hypervisor itself
    claims = [Claim(error.name, f"XEN_{error.name} == {error}") for error in Errno if error not in internal]
    assert refuted(XEN_HEADERS, claims) == {}


def test_hypercall_numbers() -> None:
    require(XEN_HEADERS)
    dispatch.load()
    in_c = {"mca": "arch_0"}
    claims = [
        Claim(name, f"__HYPERVISOR_{in_c.get(name, name)} == {number}") for number, name in dispatch.NAMES.items()
    ]
    assert len(claims) >= 13
    assert refuted(XEN_HEADERS, claims) == {}


def test_commands_are_named_after_their_constants() -> None:
    for name in XEN_MODULES:
        for constant, value in vars(import_module(name)).items():
            if isinstance(value, Op) and not constant.startswith("_"):
                assert constant.partition("_")[2].removeprefix("CMD_") == value.name


def test_feature_bits_of_kernel_notes() -> None:
    require(XEN_HEADERS)
    claims = []
    for bit, name in enumerate(FEATURE_NAMES):
        # The header withholds the deprecated one from users of the newer interface.
        optional = "XENFEAT_grant_map_identity" if name == "grant_map_identity" else ""
        claims.append(Claim(name, f"XENFEAT_{name} == {bit}", unless_missing=optional))
    assert refuted(XEN_HEADERS, claims) == {}


def test_offsets_in_the_xenstore_page() -> None:
    require(XEN_HEADERS)
    page = "struct xenstore_domain_interface"
    claims = [Claim(field.name, f"offsetof({page}, {field.name}) == {field}") for field in xs_wire.RingOffset]
    assert refuted(XEN_HEADERS, claims) == {}


def test_numbers_of_kvm() -> None:
    require(KVM_HEADERS)
    claims = []
    for name, value in numbers(constants):
        # Those of kernels newer than the headers at hand are compared where the headers have them.
        may_be_newer = name in NEWER or name.startswith(("KVM_CAP_", "KVM_EXIT_", "KVM_XEN_"))
        claims.append(claim(name, value, optional=may_be_newer))
    assert refuted(KVM_HEADERS, claims) == {}


def test_hardly_any_number_of_kvm_goes_unchecked() -> None:
    require(KVM_HEADERS)
    names = [name for name, _ in numbers(constants)]
    present = [Claim(name, f"({RENAMED.get(name, name)}) || 1") for name in names]
    assert len(refuted(KVM_HEADERS, present)) < len(names) / 10


def test_ioctl_numbers() -> None:
    require(KVM_HEADERS)
    rows = [(name, value) for name, value in vars(_kvm_ioctl).items() if name.startswith("KVM_")]
    assert len(rows) > 40
    claims = [Claim(name, f"(unsigned)({name}) == {value}U") for name, value in rows]
    assert refuted(KVM_HEADERS, claims) == {}
