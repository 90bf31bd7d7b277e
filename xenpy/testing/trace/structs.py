"""Structures of the ABI as names and values, field by field, from their C declarations."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

from xenpy.abi import mmu
from xenpy.abi._xen64 import ffi
from xenpy.abi.event_channel import EVTCHNSTAT
from xenpy.abi.grant_table import GNTCOPY_dest_gref, GNTCOPY_source_gref
from xenpy.abi.op import Op
from xenpy.testing.trace.record import Symbol
from xenpy.testing.trace.symbols import is_named, named

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from xenpy.testing.trace.record import Value

_PADDING: Final = frozenset(("pad", "_pad", "rsvd", "reserved", "_unused"))
_MAX_ITEMS: Final = 8
"""Elements of an array within a structure that are shown."""

MMUEXT_NAMES: Final[Mapping[int, Symbol]] = {
    op.number: Symbol(op.name) for name, op in vars(mmu).items() if name.startswith("MMUEXT_") and isinstance(op, Op)
}
_ADDRESSED: Final = frozenset(("INVLPG_LOCAL", "INVLPG_ALL", "INVLPG_MULTI", "SET_LDT"))
_FRAMELESS: Final = frozenset(
    ("TLB_FLUSH_LOCAL", "TLB_FLUSH_MULTI", "TLB_FLUSH_ALL", "FLUSH_CACHE", "FLUSH_CACHE_GLOBAL")
)


def decode(tag: str, value: Any) -> dict[str, Value]:
    """Return the fields of a `struct tag`, without padding; of a union what its structure says is meant."""
    special = _SPECIAL.get(tag)
    if special is not None:
        return special(value)
    return {name: read(value) for name, read in _readers(tag)}


@cache
def _readers(tag: str) -> tuple[tuple[str, Callable[[Any], Value]], ...]:
    fields = ffi.typeof(f"struct {tag}").fields
    return tuple((name, _reader(tag, name, field.type)) for name, field in fields if name not in _PADDING)


def _reader(tag: str, name: str, kind: Any) -> Callable[[Any], Value]:
    """Return the function that takes a field out of its structure. `getattr`: a field may be called `in`."""
    if kind.kind == "struct":
        inner = kind.cname.removeprefix("struct ")
        return lambda value: decode(inner, getattr(value, name))
    if kind.kind == "array":
        count = min(int(kind.length), _MAX_ITEMS)
        return lambda value: [int(item) for item in getattr(value, name)[0:count]]
    if kind.kind == "union":  # none but those of _SPECIAL: shown as the number it holds
        return lambda value: int.from_bytes(bytes(ffi.buffer(getattr(value, name))), "little")
    if is_named(tag, name):
        return lambda value: named(tag, name, getattr(value, name))
    return lambda value: int(getattr(value, name))


def _evtchn_status(op: Any) -> dict[str, Value]:
    found: dict[str, Value] = {
        "dom": named("evtchn_status", "dom", op.dom), "port": op.port,
        "status": named("evtchn_status", "status", op.status), "vcpu": op.vcpu,
    }  # fmt: skip
    if op.status == EVTCHNSTAT.unbound:
        found["unbound_dom"] = op.u.unbound.dom
    elif op.status == EVTCHNSTAT.interdomain:
        found |= {"interdomain_dom": op.u.interdomain.dom, "interdomain_port": op.u.interdomain.port}
    elif op.status == EVTCHNSTAT.virq:
        found["virq"] = named("evtchn_bind_virq", "virq", op.u.virq)
    return found


def _gnttab_copy(op: Any) -> dict[str, Value]:
    return {
        "source": _copy_pointer(op.source, granted=op.flags & GNTCOPY_source_gref),
        "dest": _copy_pointer(op.dest, granted=op.flags & GNTCOPY_dest_gref),
        "len": op.len, "flags": named("gnttab_copy", "flags", op.flags),
        "status": named("gnttab_copy", "status", op.status),
    }  # fmt: skip


def _copy_pointer(pointer: Any, *, granted: int) -> dict[str, Value]:
    where: dict[str, Value] = {"ref": pointer.u.ref} if granted else {"gmfn": pointer.u.gmfn}
    return {**where, "domid": named("gnttab_copy_ptr", "domid", pointer.domid), "offset": pointer.offset}


def _mmuext_op(op: Any) -> dict[str, Value]:
    name = MMUEXT_NAMES.get(op.cmd)
    if name is None:
        return {"cmd": op.cmd, "arg1": op.arg1.mfn, "arg2": op.arg2.src_mfn}
    found: dict[str, Value] = {"cmd": name}
    if name in _ADDRESSED:
        found["linear_addr"] = op.arg1.linear_addr
    elif name not in _FRAMELESS:
        found["mfn"] = op.arg1.mfn
    if name.endswith("_MULTI"):
        found["vcpumask"] = op.arg2.vcpumask
    elif name == "SET_LDT":
        found["nr_ents"] = op.arg2.nr_ents
    elif name == "COPY_PAGE":
        found["src_mfn"] = op.arg2.src_mfn
    return found


def _vcpu_hvm_context(context: Any) -> dict[str, Value]:
    regs = context.cpu_regs
    wide = context.mode
    return {"mode": Symbol("64B"), "rip": regs.x86_64.rip} if wide else {"mode": Symbol("32B"), "eip": regs.x86_32.eip}


def _vcpu_guest_context(context: Any) -> dict[str, Value]:
    return {"flags": context.flags, "rip": context.user_regs.rip, "rsp": context.user_regs.rsp}


_SPECIAL: Final[Mapping[str, Callable[[Any], dict[str, Value]]]] = {
    "evtchn_status": _evtchn_status,
    "gnttab_copy": _gnttab_copy,
    "mmuext_op": _mmuext_op,
    "vcpu_hvm_context": _vcpu_hvm_context,
    "vcpu_guest_context": _vcpu_guest_context,
}
