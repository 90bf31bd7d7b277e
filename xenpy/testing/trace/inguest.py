"""Hypercalls that a PV guest's in-guest code has carried out, as records.

They are told in batches, when their vCPU next comes to us. When each was made is known; how long it took is not.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from xenpy.abi._xen64 import ffi
from xenpy.abi.event_channel import DOMID_SELF
from xenpy.abi.mmu import MMU
from xenpy.abi.vcpu import VCPUOP_is_up
from xenpy.abi.version import XENVER_version
from xenpy.errors import Errno
from xenpy.shim.recording import Recorded, parse
from xenpy.testing.trace.calls import MULTICALL, SHOWN
from xenpy.testing.trace.record import Kind, Record, Symbol
from xenpy.testing.trace.structs import decode
from xenpy.testing.trace.symbols import flush_name, named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from xenpy.domain.domain import Domain
    from xenpy.domain.vcpu import Vcpu
    from xenpy.testing.trace.record import Value

_MMU_UPDATE, _STACK_SWITCH, _UPDATE_VA_MAPPING, _XEN_VERSION, _IRET, _VCPU_OP = 1, 3, 14, 17, 23, 24
_SET_SEGMENT_BASE, _MMUEXT_OP = 25, 26
_NAMES: Final = {
    _MMU_UPDATE: "mmu_update", _STACK_SWITCH: "stack_switch", MULTICALL: "multicall", _XEN_VERSION: f"xen_version.{XENVER_version.name}",
    _IRET: "iret", _VCPU_OP: f"vcpu_op.{VCPUOP_is_up.name}", _SET_SEGMENT_BASE: "set_segment_base", _MMUEXT_OP: "mmuext_op",
    _UPDATE_VA_MAPPING: "update_va_mapping",
}  # fmt: skip
MULTICALL_ENTRY: Final = 64
_MSR_TSC: Final = 0x10
_KHZ_NS: Final = 1_000_000
_CMD_MASK: Final = 3
_OP: Final = Struct("<QQQ")
_OP_POINTER: Final = ffi.typeof("struct mmuext_op *")


class InGuestRecords:
    """Makes records of what a domain's in-guest code reports, and gives them to `emit`, or to `defer` a function that makes them.

    `wants` tells by name whether a record may be wanted; `arguments` whether anybody looks at them; `now` is the time of records, in ns.
    """

    def __init__(
        self,
        domain: Domain,
        emit: Callable[[Record], None],
        wants: Callable[[str], bool],
        now: Callable[[], int],
        *,
        arguments: bool,
        defer: Callable[[Callable[[], list[Record]]], None] | None = None,
    ) -> None:
        self._domid = domain.domid
        self._version = domain.version.number
        self._emit = emit
        self._defer = defer
        self._now = now
        self._wanted = {number: wants(name) for number, name in _NAMES.items()}
        self._arguments = arguments
        self._unfinished: dict[int, int | bytes] = {}
        """By vCPU, the calls that the multicall in progress has had carried out within the guest, or where to find them."""

    def within(self, vcpu_id: int) -> int:
        """Return how many calls of the multicall that a vCPU hands on have been carried out, once."""
        unfinished = self._unfinished.pop(vcpu_id, 0)
        if isinstance(unfinished, int):
            return unfinished
        return _Batch(vcpu_id, unfinished).unfinished

    def __call__(self, vcpu: Vcpu, data: bytes) -> None:
        """Take what a vCPU's in-guest code has recorded since the last time, in its thread or when it has ended."""
        tsc, now, khz = vcpu.kvm.get_msrs([_MSR_TSC])[_MSR_TSC], self._now(), vcpu.kvm.tsc_khz()

        def when(one: Recorded) -> int:
            return now - max(0, tsc - one.tsc) * _KHZ_NS // khz

        vcpu_id = vcpu.vcpu_id
        if self._defer is not None:
            self._unfinished[vcpu_id] = data
            self._defer(lambda: list(self._records(_Batch(vcpu_id, data), when)))
            return
        batch = _Batch(vcpu_id, data)
        for record in self._records(batch, when):
            self._emit(record)
        self._unfinished[vcpu_id] = batch.unfinished

    def _records(self, batch: _Batch, when: Callable[[Recorded], int]) -> Iterator[Record]:
        for elements, within in batch.calls():
            one = elements[0]
            number = one.number
            if not self._wanted.get(number):  # or none that in-guest code carries out: the guest can write there
                continue
            record = Record(when(one), self._domid, batch.vcpu_id, Kind.HYPERCALL, _NAMES[number])
            record.depth, record.in_guest = int(one.is_inner), True
            if number == _VCPU_OP:
                record.result, record.error = -Errno.ENOENT, Errno.ENOENT.name
            elif number == _XEN_VERSION:
                record.result = self._version
            if self._arguments:
                record.args = _arguments(number, elements, within)
            yield record


class _Batch:
    """What one vCPU's in-guest code has recorded."""

    def __init__(self, vcpu_id: int, data: bytes) -> None:
        self.vcpu_id = vcpu_id
        self._data = data
        self._within: int | None = None

    @property
    def unfinished(self) -> int:
        """How many calls at the end are of a multicall that has not ended."""
        if self._within is None:
            for _ in self.calls():
                pass
        return self._within or 0

    def calls(self) -> Iterator[tuple[Sequence[Recorded], int]]:
        """Yield each hypercall, the elements of its list one by one, and for a multicall how many calls it had."""
        elements: list[Recorded] = []
        within = 0
        for one in (*parse(self._data), None):
            if elements and (one is None or not _goes_on(elements[-1], one)):
                # What has not been done of the list has been handed on.
                number, is_inner = elements[0].number, elements[0].is_inner
                within = within + 1 if is_inner else within
                yield elements, within if number == MULTICALL else 0
                within = within if is_inner else 0
                elements = []
            if one is not None:
                elements.append(one)
        self._within = within


def _goes_on(before: Recorded, one: Recorded) -> bool:
    """Tell whether a record is of the list's next element."""
    return one.is_element and one.head == before.head and one.second == before.second - 1 and one.second > 0


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
    if number == _UPDATE_VA_MAPPING:
        return {"va": one.first, "val": one.second, "flags": flush_name(one.words[0])}
    return {}


def _update(ptr: int, val: int) -> Value:
    command = ptr & _CMD_MASK
    return {"cmd": Symbol(MMU(command).name), "ptr": ptr - command, "val": val}


def _list(name: str, elements: list[Value], count: int) -> dict[str, Value]:
    shown: list[Value] = [*elements, Symbol("...")] if count > len(elements) else elements
    return {name: shown, "count": count, "domid": named("", "domid", DOMID_SELF)}
