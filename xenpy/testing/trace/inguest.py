"""Hypercalls that a PV guest's in-guest code has carried out, as records.

They are told in batches, when their vCPU next comes to us. When each was made is known; how long it took is not.
"""

from __future__ import annotations

from collections import defaultdict
from struct import Struct
from typing import TYPE_CHECKING, Final

from xenpy.abi._xen64 import ffi
from xenpy.abi.event_channel import DOMID_SELF
from xenpy.abi.mmu import MMU
from xenpy.abi.vcpu import VCPUOP_is_up
from xenpy.abi.version import XENVER_version
from xenpy.errors import Errno
from xenpy.testing.trace.calls import MULTICALL, SHOWN
from xenpy.testing.trace.record import Kind, Record, Symbol
from xenpy.testing.trace.structs import decode
from xenpy.testing.trace.symbols import named

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xenpy.domain.domain import Domain
    from xenpy.domain.vcpu import Vcpu
    from xenpy.shim.recording import Recorded
    from xenpy.testing.trace.record import Value

_MMU_UPDATE, _STACK_SWITCH, _XEN_VERSION, _IRET, _VCPU_OP, _SET_SEGMENT_BASE, _MMUEXT_OP = 1, 3, 17, 23, 24, 25, 26
_NAMES: Final = {
    _MMU_UPDATE: "mmu_update", _STACK_SWITCH: "stack_switch", MULTICALL: "multicall", _XEN_VERSION: f"xen_version.{XENVER_version.name}",
    _IRET: "iret", _VCPU_OP: f"vcpu_op.{VCPUOP_is_up.name}", _SET_SEGMENT_BASE: "set_segment_base", _MMUEXT_OP: "mmuext_op",
}  # fmt: skip
MULTICALL_ENTRY: Final = 64
_MSR_TSC: Final = 0x10
_KHZ_NS: Final = 1_000_000
_CMD_MASK: Final = 3
_OP: Final = Struct("<QQQ")
_OP_POINTER: Final = ffi.typeof("struct mmuext_op *")


class InGuestRecords:
    """Makes records of what a domain's in-guest code reports, and gives them to `emit`.

    `wants` tells by name whether a record may be wanted; `arguments` whether anybody looks at them; `now` is the time of records, in ns.
    """

    def __init__(
        self, domain: Domain, emit: Callable[[Record], None], wants: Callable[[str], bool], now: Callable[[], int],
        *, arguments: bool,
    ) -> None:  # fmt: skip
        self._domain = domain
        self._emit = emit
        self._now = now
        self._wanted = {number: wants(name) for number, name in _NAMES.items()}
        self._arguments = arguments
        self._within: defaultdict[int, int] = defaultdict(int)
        """By vCPU, the calls that the multicall in progress has had carried out within the guest."""

    def within(self, vcpu_id: int) -> int:
        """Return how many calls of the multicall that a vCPU hands on have been carried out, once."""
        return self._within.pop(vcpu_id, 0)

    def __call__(self, vcpu: Vcpu, recorded: Sequence[Recorded]) -> None:
        """Take what a vCPU's in-guest code has done since the last time, in its thread or when it has ended."""
        khz = vcpu.kvm.tsc_khz()
        tsc, now = vcpu.kvm.get_msrs([_MSR_TSC])[_MSR_TSC], self._now()

        def when(one: Recorded) -> int:
            return now - max(0, tsc - one.tsc) * _KHZ_NS // khz

        elements: list[Recorded] = []
        for one in recorded:
            if elements and not _goes_on(elements[-1], one):
                self._tell(vcpu, elements, when(elements[0]))
                elements = []
            elements.append(one)
            if not one.is_element or one.second <= 1:
                self._tell(vcpu, elements, when(elements[0]))
                elements = []
        if elements:  # the rest of the list has been handed on
            self._tell(vcpu, elements, when(elements[0]))

    def _tell(self, vcpu: Vcpu, elements: Sequence[Recorded], time_ns: int) -> None:
        one = elements[0]
        number = one.number
        if one.is_inner:
            self._within[vcpu.vcpu_id] += 1
        within = self.within(vcpu.vcpu_id) if number == MULTICALL else 0
        if not self._wanted.get(number):  # or none that in-guest code carries out: the guest can write there
            return
        record = Record(time_ns, self._domain.domid, vcpu.vcpu_id, Kind.HYPERCALL, _NAMES[number])
        record.depth, record.in_guest = int(one.is_inner), True
        if number == _VCPU_OP:
            record.result, record.error = -Errno.ENOENT, Errno.ENOENT.name
        elif number == _XEN_VERSION:
            record.result = self._domain.version.number
        if self._arguments:
            record.args = _arguments(number, elements, within)
        self._emit(record)


def _goes_on(before: Recorded, one: Recorded) -> bool:
    """Tell whether a record is of the list's next element."""
    return one.head == before.head and one.second == before.second - 1


def _arguments(number: int, elements: Sequence[Recorded], within: int) -> dict[str, Value]:
    one = elements[0]
    if number == _MMU_UPDATE:
        return _list("req", [_update(*element.words[:2]) for element in elements[:SHOWN]], len(elements))
    if number == _MMUEXT_OP:
        ops: list[Value] = [
            decode("mmuext_op", ffi.from_buffer(_OP_POINTER, _OP.pack(*element.words[:3])))
            for element in elements[:SHOWN]
        ]
        return _list("op", ops, len(elements))
    if number == MULTICALL:
        return {"call_list": one.first - within * MULTICALL_ENTRY, "nr_calls": within}
    if number == _STACK_SWITCH:
        return {"ss": one.first, "esp": one.second}
    if number == _SET_SEGMENT_BASE:
        return {"which": named("set_segment_base", "which", one.first), "base": one.second}
    if number == _VCPU_OP:
        return {"vcpuid": one.second}
    return {}


def _update(ptr: int, val: int) -> Value:
    command = ptr & _CMD_MASK
    return {"cmd": Symbol(MMU(command).name), "ptr": ptr - command, "val": val}


def _list(name: str, elements: list[Value], count: int) -> dict[str, Value]:
    shown: list[Value] = [*elements, Symbol("...")] if count > len(elements) else elements
    return {name: shown, "count": count, "domid": named("", "domid", DOMID_SELF)}
