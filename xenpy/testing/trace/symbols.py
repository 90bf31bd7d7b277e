"""Which fields of the ABI's structures hold constants, and the names of these. Ref: xen/include/public/"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

from xenpy.abi.event_channel import DOMID_IO, DOMID_SELF, DOMID_XEN, EVTCHNSTAT, VIRQ
from xenpy.abi.grant_table import (
    GNTST,
    GNTCOPY_dest_gref,
    GNTCOPY_source_gref,
    GNTMAP_application_map,
    GNTMAP_contains_pte,
    GNTMAP_device_map,
    GNTMAP_host_map,
    GNTMAP_readonly,
)
from xenpy.abi.memory import XENMAPSPACE
from xenpy.abi.mmu import UVMF_ALL, UVMF_FLUSHTYPE_MASK, UVMF_INVLPG, UVMF_TLB_FLUSH
from xenpy.abi.sched import SHUTDOWN
from xenpy.abi.vcpu import RUNSTATE, VCPU_SSHOTTMR_future
from xenpy.hypercalls import vm_assist
from xenpy.hypercalls.callback import CALLBACKTYPE, CALLBACKF_mask_events
from xenpy.pv.hvm_params import HVM_PARAM
from xenpy.pv.version import XENFEAT
from xenpy.testing.trace.record import Symbol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from enum import IntEnum

    from xenpy.testing.trace.record import Value


def _names(members: Iterable[IntEnum]) -> dict[int, Symbol]:
    return {int(member): Symbol(member.name) for member in members}


_DOMIDS: Final = {DOMID_SELF: Symbol("DOMID_SELF"), DOMID_IO: Symbol("DOMID_IO"), DOMID_XEN: Symbol("DOMID_XEN")}
DOMID_FIELDS: Final = frozenset(("dom", "domid", "remote_dom", "foreign_domid", "domain_id"))
_GNTST: Final = _names(GNTST)
_SPACES: Final = _names(XENMAPSPACE)
_REASONS: Final = _names(SHUTDOWN)
_CALLBACKS: Final = _names(CALLBACKTYPE)

_FIELDS: Final[Mapping[tuple[str, str], Mapping[int, Symbol]]] = {
    ("evtchn_bind_virq", "virq"): _names(VIRQ),
    ("evtchn_status", "status"): _names(EVTCHNSTAT),
    ("xen_add_to_physmap", "space"): _SPACES,
    ("xen_add_to_physmap_batch", "space"): _SPACES,
    ("xen_hvm_param", "index"): _names(HVM_PARAM),
    ("sched_shutdown", "reason"): _REASONS,
    ("sched_remote_shutdown", "reason"): _REASONS,
    ("vcpu_runstate_info", "state"): _names(RUNSTATE),
    ("callback_register", "type"): _CALLBACKS,
    ("callback_unregister", "type"): _CALLBACKS,
    ("vm_assist", "type"): {
        value: Symbol(name.removeprefix("VMASST_TYPE_"))
        for name, value in vars(vm_assist).items()
        if name.startswith("VMASST_TYPE_")
    },
    ("set_segment_base", "which"): {
        number: Symbol(name) for number, name in enumerate(("FS", "GS_USER", "GS_KERNEL", "GS_USER_SEL"))
    },
}
_FLAGS: Final[Mapping[tuple[str, str], Mapping[int, str]]] = {
    ("gnttab_map_grant_ref", "flags"): {
        GNTMAP_device_map: "device_map", GNTMAP_host_map: "host_map", GNTMAP_readonly: "readonly",
        GNTMAP_application_map: "application_map", GNTMAP_contains_pte: "contains_pte",
    },
    ("gnttab_copy", "flags"): {GNTCOPY_source_gref: "source_gref", GNTCOPY_dest_gref: "dest_gref"},
    ("vcpu_set_singleshot_timer", "flags"): {VCPU_SSHOTTMR_future: "future"},
    ("callback_register", "flags"): {CALLBACKF_mask_events: "mask_events"},
    ("xen_feature_info", "submap"): {1 << feature: feature.name for feature in XENFEAT},
}  # fmt: skip


@cache
def _table(tag: str, field: str) -> Mapping[int, Symbol]:
    if field in DOMID_FIELDS:
        return _DOMIDS
    if field == "status" and tag.startswith("gnttab_"):
        return _GNTST
    return _FIELDS.get((tag, field), {})


def named(tag: str, field: str, value: int) -> Value:
    """Return the symbol that a number stands for in a field of `struct tag`, or in an argument of a hypercall, else the number."""
    flags = _FLAGS.get((tag, field))
    if flags is None:
        return _table(tag, field).get(value, value)
    return flag_names(value, flags) if value else 0


def is_named(tag: str, field: str) -> bool:
    """Tell whether `named` knows the field."""
    return bool((tag, field) in _FLAGS or _table(tag, field))


def flag_names(value: int, names: Mapping[int, str]) -> Symbol:
    """Return the names of the bits that are set, joined by `|`; bits without one are a number at the end."""
    found = [name for bit, name in names.items() if value & bit]
    rest = value & ~sum(names)
    return Symbol("|".join([*found, hex(rest)] if rest else found))


def flush_name(flags: int) -> Value:
    """Return the UVMF_* flags of update_va_mapping by name; a bitmap of vCPUs is given by its address."""
    kinds = {0: "NONE", UVMF_TLB_FLUSH: "TLB_FLUSH", UVMF_INVLPG: "INVLPG"}
    kind = kinds.get(flags & UVMF_FLUSHTYPE_MASK)
    whom = flags & ~UVMF_FLUSHTYPE_MASK
    if kind is None:
        return flags
    return Symbol(kind if not whom else f"{kind}|ALL" if whom == UVMF_ALL else f"{kind}|{whom:#x}")
