"""The arguments of hypercalls by name, before they are carried out, and what was copied out, after.

What a pointer names is read once more for the trace: a guest that changes it meanwhile is shown as it was before or after.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

from xenpy.abi import version
from xenpy.abi.mmu import MMU
from xenpy.errors import XenError
from xenpy.hypercalls.dispatch import HYPERCALLS, NAMES, ArrayHypercall, Hypercall, carry_out, describe
from xenpy.hypercalls.dispatch import dispatch as base_dispatch
from xenpy.testing.trace.record import Symbol
from xenpy.testing.trace.structs import decode
from xenpy.testing.trace.symbols import flush_name, named

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from xenpy.abi.op import Op
    from xenpy.hypercalls.call import Call
    from xenpy.testing.trace.record import Value

SHOWN: Final = 4
"""Elements of a guest's arrays that are shown."""
_LOOKED_AT: Final = 64
"""Elements of an array whose status is looked at; none of a longer one's rest is."""
_TEXT: Final = 256
"""Bytes of a guest's text that are shown."""
_MASK32: Final = 0xFFFF_FFFF
_PREEMPTED: Final = 1 << 31
_CMD_MASK: Final = 3
MULTICALL: Final = 13

_POSITIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "set_trap_table": ("traps",),
    "set_gdt": ("frame_list", "entries"),
    "stack_switch": ("ss", "esp"),
    "set_callbacks": ("event_address", "failsafe_address", "syscall_address"),
    "fpu_taskswitch": ("set",),
    "set_debugreg": ("reg", "value"),
    "get_debugreg": ("reg",),
    "update_descriptor": ("maddr", "desc"),
    "multicall": ("call_list", "nr_calls"),
    "update_va_mapping": ("va", "val", "flags"),
    "update_va_mapping_otherdomain": ("va", "val", "flags", "domid"),
    "set_timer_op": ("timeout_ns",),
    "set_segment_base": ("which", "base"),
    "iret": (),
    "mmu_update": ("req", "count", "pdone", "foreigndom"),
    "mmuext_op": ("op", "count", "pdone", "foreigndom"),
}
"""The arguments of hypercalls without commands. Ref: xen/include/public/xen.h and arch-x86/xen.h"""
OTHER_NAMES: Final = {
    27: "xsm_op", 31: "xenoprof_op", 38: "tmem_op", 39: "argo_op", 41: "dm_op",
}  # fmt: skip
"""Hypercalls that xenpy does not carry out, but kernels try. Ref: xen/include/public/xen.h, __HYPERVISOR_*"""
_BESIDE: Final[Mapping[str, Mapping[str, int]]] = {
    "vcpu_op": {"vcpuid": 1},
    "sched_op_compat": {"arg": 1},
    "vm_assist": {"type": 1},
    "console_io": {"count": 1, "buffer": 2},
    "grant_table_op": {"count": 2},
    "xen_version": {"buffer": 1},
}
"""Arguments beside a command's structure, by position."""
_LISTS: Final[Mapping[str, tuple[tuple[str, str, int], ...]]] = {
    "xen_memory_reservation": (("extent_start", "nr_extents", 0),),
    "xen_add_to_physmap_batch": (("idxs", "size", 0), ("gpfns", "size", 0)),
    "sched_poll": (("ports", "nr_ports", 4),),
}
"""Arrays that structures name: (pointer, count, size of an element in bytes, 0 for the caller's xen_pfn_t)."""
_LISTS_OUT: Final[Mapping[str, tuple[tuple[str, str, int], ...]]] = {
    "gnttab_setup_table": (("frame_list", "nr_frames", 0),),
    "gnttab_get_status_frames": (("frame_list", "nr_frames", 8),),
}
"""The same for arrays that Xen fills in."""
_TEXTS_OUT: Final = {
    version.XENVER_extraversion.name: version.XEN_EXTRAVERSION_LEN,
    version.XENVER_capabilities.name: version.XEN_CAPABILITIES_INFO_LEN,
    version.XENVER_changeset.name: version.XEN_CHANGESET_INFO_LEN,
    version.XENVER_commandline.name: _TEXT,
}


class Described:
    """A hypercall's arguments, and what came of them when it has been carried out."""

    __slots__ = ("_call", "_op", "_structs", "args")

    def __init__(self, call: Call, name: str, op: Op | None) -> None:
        self._call = call
        self._op = op
        self._structs: list[tuple[str, int, dict[str, Value]]] = []
        """(tag, where, as it was) of what may be copied out."""
        function = HYPERCALLS.get(call.nr)
        self.args = dict(self._positional(name.partition(".")[0]))
        if op is not None and op.struct:
            self._read(op, is_array=isinstance(function, ArrayHypercall), at=getattr(function, "struct_arg", 1))

    # -- before -------------------------------------------------------------------------------------------------------

    def _positional(self, name: str) -> dict[str, Value]:
        call = self._call
        special = _SPECIAL.get(call.nr)
        if special is not None:
            return special(call)
        if name in _POSITIONS:
            return {field: named(name, field, value) for field, value in zip(_POSITIONS[name], call.args, strict=False)}
        if self._op is None:  # the command, if there are any, is part of the name
            first = int(isinstance(HYPERCALLS.get(call.nr), Hypercall))
            return {f"arg{index}": value for index, value in enumerate(call.args) if index >= first}
        op = self._op
        beside = {
            field: named(name, field, call.args[at])
            for field, at in _BESIDE.get(name, {}).items()
            if not (field == "buffer" and op.struct) and not (field == "count" and call.args[at] == 1)
        }
        if name == "vcpu_op" and op.name == "initialise":
            return beside | _context(call)
        return beside

    def _read(self, op: Op, *, is_array: bool, at: int) -> None:
        call = self._call
        gva, count = call.args[at], call.args[2] & _MASK32 if is_array else 1
        found: list[Value] = []
        for index in range(min(count, _LOOKED_AT)):
            try:
                fields = decode(op.struct, call.struct(op.struct, gva))
            except XenError:
                self.args["arg"] = gva  # not readable: the address alone
                break
            if op.out:
                self._structs.append((op.struct, gva, dict(fields)))
            if is_array:
                fields.pop("status", None)  # for Xen to fill in
            if index < SHOWN:
                _follow(call, fields, _LISTS.get(op.struct, ()))
                found.append(fields)
            gva += call.struct_size(op.struct)
        if count == 1 and found and isinstance(found[0], dict):
            self.args |= found[0]
        elif found:
            self.args["array"] = [*found, Symbol("...")] if count > len(found) else found

    # -- after --------------------------------------------------------------------------------------------------------

    def outcome(self) -> tuple[dict[str, Value], str]:
        """Return what a hypercall that succeeded has copied out, and the name of the first status of failure in it."""
        if not self._structs:
            return self._text_out(), ""
        changes: list[Value] = []
        error = ""
        for tag, gva, before in self._structs:
            try:
                after = decode(tag, self._call.struct(tag, gva))
            except XenError:
                continue
            if tag.startswith("gnttab_"):
                status = after.pop("status", "okay")
                if status != "okay":
                    error = error or str(status)
                    changes.append({"status": status})
                    continue
            followed = dict(after)
            _follow(self._call, followed, _LISTS_OUT.get(tag, ()))
            # A pointer to an array that was filled in has not changed itself.
            changes.append(
                {name: value for name, value in followed.items() if value != before.get(name) or value != after[name]}
            )
        if len(changes) == 1 and isinstance(changes[0], dict):
            return changes[0], error
        shown = [*changes[:SHOWN], Symbol("...")] if len(changes) > SHOWN else changes
        return ({"array": shown} if any(changes) else {}), error

    def _text_out(self) -> dict[str, Value]:
        op = self._op
        if op is None or NAMES.get(self._call.nr) != "xen_version" or op.name not in _TEXTS_OUT:
            return {}
        return _text(self._call, self._call.args[1], min(_TEXTS_OUT[op.name], _TEXT), "text", cut=True)


def name_of(call: Call) -> tuple[str, Op | None]:
    """Return the name of a hypercall, with its command, such as memory_op.populate_physmap, and the Op row of that command or None."""
    if call.nr in OTHER_NAMES and call.nr not in NAMES:
        return OTHER_NAMES[call.nr], None
    return describe(call)


@runtime_checkable
class CarriesOut(Protocol):
    """What stands where `Domain.dispatch` did, and can tell why it refuses."""

    def carry_out(self, call: Call) -> int:
        """Carry out a hypercall. Raises XenError."""


def reasoned(dispatch: Callable[[Call], int]) -> Callable[[Call], int]:
    """Return what does as `dispatch` does, but raises XenError with the reason for a refusal, which the guest never sees."""
    if dispatch is base_dispatch:
        return carry_out
    stands: object = dispatch
    return stands.carry_out if isinstance(stands, CarriesOut) else dispatch


def _follow(call: Call, fields: dict[str, Value], lists: tuple[tuple[str, str, int], ...]) -> None:
    """Put the first elements of arrays in the place of the pointers to them."""
    for pointer, count, size in lists:
        gva, number = fields[pointer], fields[count]
        if isinstance(gva, int) and isinstance(number, int) and gva and number:
            try:
                words: list[Value] = list(call.words(gva, min(number, SHOWN), size))
            except XenError:
                continue
            fields[pointer] = [*words, Symbol("...")] if number > SHOWN else words


def _text(call: Call, gva: int, size: int, field: str, *, cut: bool = False) -> dict[str, Value]:
    try:
        data = call.read(gva, size)
    except XenError:
        return {}
    return {field: (data.split(b"\0", 1)[0] if cut else data).decode("utf-8", "backslashreplace")}


def _context(call: Call) -> dict[str, Value]:
    tag = "vcpu_guest_context" if call.domain.is_pv else "vcpu_hvm_context"
    try:
        return decode(tag, call.struct(tag, call.args[2]))
    except XenError:
        return {"context": call.args[2]}


# -- hypercalls whose arguments are told neither by an Op row nor by their position alone --------------------------------------------


def _mmu_update(call: Call) -> dict[str, Value]:
    count = call.args[1] & ~_PREEMPTED & _MASK32
    updates: list[Value] = []
    for index in range(min(count, SHOWN)):
        try:
            ptr, val = call.words(call.args[0] + index * 16, 2, 8)
        except XenError:
            break
        command = ptr & _CMD_MASK
        updates.append({"cmd": Symbol(MMU(command).name), "ptr": ptr - command, "val": val})
    return _array("req", updates, call, count)


def _mmuext_op(call: Call) -> dict[str, Value]:
    count = call.args[1] & ~_PREEMPTED & _MASK32
    ops: list[Value] = []
    for index in range(min(count, SHOWN)):
        try:
            ops.append(
                decode("mmuext_op", call.struct("mmuext_op", call.args[0] + index * call.struct_size("mmuext_op")))
            )
        except XenError:
            break
    return _array("op", ops, call, count)


def _array(name: str, elements: list[Value], call: Call, count: int) -> dict[str, Value]:
    shown: list[Value] = [*elements, Symbol("...")] if count > len(elements) else elements
    return {
        name: shown if elements else call.args[0],
        "count": count,
        "domid": named("", "domid", call.args[3] & 0xFFFF),
    }


def _update_va_mapping(call: Call) -> dict[str, Value]:
    return {"va": call.args[0], "val": call.args[1], "flags": flush_name(call.args[2])}


def _set_timer_op(call: Call) -> dict[str, Value]:
    return {"timeout_ns": call.args[0] if call.wide else call.args[0] & _MASK32 | call.args[1] << 32}


def _console_io(call: Call) -> dict[str, Value]:
    count = call.args[1] & _MASK32
    text = {} if call.args[0] else _text(call, call.args[2], min(count, _TEXT), "buffer")
    return {"count": count, **(text or {"buffer": call.args[2]})}


def _set_trap_table(call: Call) -> dict[str, Value]:
    gva, size = call.args[0], call.struct_size("trap_info")
    traps: list[Value] = []
    try:
        while gva and len(traps) < SHOWN:
            trap: Any = call.struct("trap_info", gva)
            if not trap.address:
                break
            traps.append(decode("trap_info", trap))
            gva += size
    except XenError:
        pass
    full = len(traps) == SHOWN
    return {"traps": [*traps, Symbol("...")] if full else traps or call.args[0]}


_SPECIAL: Final[Mapping[int, Callable[[Call], dict[str, Value]]]] = {
    0: _set_trap_table,
    1: _mmu_update,
    14: _update_va_mapping,
    15: _set_timer_op,
    18: _console_io,
    26: _mmuext_op,
}
"""By hypercall number. Ref: xen/include/public/xen.h, __HYPERVISOR_*"""
