"""What a trace says of hypercalls."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from fakes import OTHER_DOMID, UNMAPPED
from trace_rig import ARGUMENT, DOMID, Rig, traced

from xenpy.abi import event_channel, grant_table, hvm_op, memory, mmu, sched, vcpu
from xenpy.abi._xen64 import ffi
from xenpy.abi.event_channel import DOMID_SELF
from xenpy.errors import Errno
from xenpy.hypercalls import dispatch
from xenpy.testing.trace.record import Kind
from xenpy.testing.trace.structs import decode
from xenpy.testing.trace.text import line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xenpy.abi.op import Op

dispatch.load()
MMU_UPDATE, MEMORY_OP, MULTICALL, XEN_VERSION, CONSOLE_IO, GRANT_TABLE_OP = 1, 12, 13, 17, 18, 20
VCPU_OP, MMUEXT_OP, SCHED_OP, EVENT_CHANNEL_OP, HVM_OP = 24, 26, 29, 32, 34
OPS = [
    (function.name, op)
    for function in dispatch.HYPERCALLS.values()
    if isinstance(function, dispatch.Hypercall)
    for op in function.ops.values()
    if op.struct
]


@pytest.fixture
def rig() -> Iterator[Rig]:
    with traced("hypercall") as made:
        yield made


@pytest.fixture
def pv_rig() -> Iterator[Rig]:
    with traced("hypercall", is_pv=True) as made:
        yield made


@pytest.mark.parametrize("wide", [True, False])
def test_arguments_result_and_what_is_copied_out(rig: Rig, wide: bool) -> None:
    rig.op(EVENT_CHANNEL_OP, event_channel.EVTCHNOP_alloc_unbound, {"dom": DOMID_SELF, "remote_dom": 3}, wide=wide)
    record = rig.last()
    assert (record.kind, record.name, record.domid, record.vcpu_id) == (
        Kind.HYPERCALL, "event_channel_op.alloc_unbound", DOMID, 0,
    )  # fmt: skip
    assert record.args == {"dom": "DOMID_SELF", "remote_dom": 3, "port": 0}
    assert (record.result, record.out, record.error) == (0, {"port": 1}, "")
    assert record.latency_ns > 0


def test_a_refusal_has_a_name_and_a_reason_that_the_guest_never_sees(rig: Rig) -> None:
    assert rig.op(EVENT_CHANNEL_OP, event_channel.EVTCHNOP_close, {"port": 5}) == -Errno.EINVAL
    record = rig.last()
    assert (record.result, record.error, record.reason) == (-22, "EINVAL", "port 5 is closed")
    assert "event_channel_op(close, port=5) = -22 EINVAL (port 5 is closed)" in line(record)


def test_an_argument_that_cannot_be_read_is_an_address(rig: Rig) -> None:
    assert rig.call(EVENT_CHANNEL_OP, 3, UNMAPPED) == -Errno.EFAULT
    assert rig.last().args == {"arg": UNMAPPED}
    assert rig.last().error == "EFAULT"


@pytest.mark.parametrize(
    ("nr", "op", "fields", "shown"),
    [
        (HVM_OP, hvm_op.HVMOP_get_param, {"index": 1}, {"index": "STORE_PFN"}),
        (MEMORY_OP, memory.XENMEM_add_to_physmap, {"space": 1}, {"space": "grant_table"}),
        (SCHED_OP, sched.SCHEDOP_shutdown, {"reason": 3}, {"reason": "crash"}),
        (SCHED_OP, sched.SCHEDOP_shutdown, {"reason": 77}, {"reason": 77}),
        (EVENT_CHANNEL_OP, event_channel.EVTCHNOP_bind_virq, {"virq": 1}, {"virq": "DEBUG"}),
    ],
)
def test_constants_have_names(rig: Rig, nr: int, op: Op, fields: dict[str, int], shown: dict[str, object]) -> None:
    rig.op(nr, op, fields)
    assert shown.items() <= rig.last().args.items()


def test_flags_have_names_and_the_structure_may_be_another_argument(rig: Rig) -> None:
    rig.op(VCPU_OP, vcpu.VCPUOP_set_singleshot_timer, {"timeout_abs_ns": 5, "flags": 1 | 8}, at=2)
    assert rig.last().args == {"vcpuid": 0, "timeout_abs_ns": 5, "flags": "future|0x8"}


def test_a_union_is_what_the_structure_says(rig: Rig) -> None:
    source = {"u": {"ref": 9}, "domid": OTHER_DOMID, "offset": 4}
    dest = {"u": {"gmfn": 0x20}, "domid": DOMID_SELF, "offset": 8}
    rig.op(GRANT_TABLE_OP, grant_table.GNTTABOP_copy, {"source": source, "dest": dest, "len": 16, "flags": 1})
    args = rig.last().args
    assert args["source"] == {"ref": 9, "domid": OTHER_DOMID, "offset": 4}
    assert args["dest"] == {"gmfn": 0x20, "domid": "DOMID_SELF", "offset": 8}
    assert args["flags"] == "source_gref"


def test_every_element_of_an_array_is_shown_and_a_status_is_a_failure(rig: Rig) -> None:
    bad = {"dom": 999, "ref": 1, "flags": grant_table.GNTMAP_host_map | grant_table.GNTMAP_readonly}
    assert rig.op(GRANT_TABLE_OP, grant_table.GNTTABOP_map_grant_ref, bad, {**bad, "ref": 2}) == 0
    record = rig.last()
    array = record.args["array"]
    assert isinstance(array, list)
    assert [(element["ref"], element["flags"]) for element in array if isinstance(element, dict)] == [
        (1, "host_map|readonly"), (2, "host_map|readonly"),
    ]  # fmt: skip
    assert record.error == "bad_domain"
    assert record.out == {"array": [{"status": "bad_domain"}, {"status": "bad_domain"}]}


def test_a_failure_behind_those_that_are_shown_is_one(rig: Rig) -> None:
    rig.op(GRANT_TABLE_OP, grant_table.GNTTABOP_swap_grant_ref, *[{"ref_a": 1, "ref_b": 1}] * 6, {"ref_a": 1 << 30})
    record = rig.last()
    array = record.args["array"]
    assert isinstance(array, list)
    assert len(array) == 5
    assert array[-1] == "..."
    assert record.error == "bad_gntref"


def test_a_huge_array_is_not_walked(rig: Rig) -> None:
    rig.call(MMU_UPDATE, ARGUMENT, 0x7FFF_FFFF)
    req = rig.last().args["req"]
    assert isinstance(req, list)
    assert len(req) == 5, "four and an ellipsis"
    assert rig.call(GRANT_TABLE_OP, 8, ARGUMENT, 0xFFFF_FFFF) == -Errno.EINVAL
    assert rig.last().args["count"] == 0xFFFF_FFFF


def test_lists_that_a_structure_names_are_followed(rig: Rig) -> None:
    rig.domain.put(0x9000, *[(value, 8) for value in (0x11, 0x12, 0x13, 0x14, 0x15)])
    fields = {"extent_start": 0x9000, "nr_extents": 5, "domid": DOMID_SELF}
    rig.op(MEMORY_OP, memory.XENMEM_decrease_reservation, fields)
    assert rig.last().args["extent_start"] == [0x11, 0x12, 0x13, 0x14, "..."]
    assert rig.last().result == 5


def test_lists_that_xen_fills_in_are_shown_after(rig: Rig) -> None:
    rig.op(GRANT_TABLE_OP, grant_table.GNTTABOP_setup_table, {"dom": DOMID_SELF, "nr_frames": 1, "frame_list": 0x9000})
    assert rig.last().args["frame_list"] == 0x9000
    assert rig.last().out["frame_list"] == [grant_table.INVALID_GFN]


def test_texts(rig: Rig) -> None:
    rig.domain.memory.write(0x9000, b"panic \xff\n")
    rig.call(CONSOLE_IO, 0, 8, 0x9000)
    assert rig.last().args == {"count": 8, "buffer": "panic \\xff\n"}
    rig.call(XEN_VERSION, 1, 0x9000)
    assert rig.last().out == {"text": ".0-xenpy"}


def test_pv_commands(pv_rig: Rig) -> None:
    element = ffi.new("struct mmuext_op *", {"cmd": mmu.MMUEXT_INVLPG_LOCAL.number, "arg1": {"linear_addr": 0x1234}})
    pv_rig.domain.memory.write(0x9000, bytes(ffi.buffer(element)))
    assert pv_rig.call(MMUEXT_OP, 0x9000, 1, 0, DOMID_SELF) == 0
    assert pv_rig.last().args == {
        "op": [{"cmd": "INVLPG_LOCAL", "linear_addr": 0x1234}], "count": 1, "domid": "DOMID_SELF",
    }  # fmt: skip
    pv_rig.domain.put(0x9000, (0x5000 | mmu.MMU.MACHPHYS_UPDATE, 8), (77, 8))
    pv_rig.call(MMU_UPDATE, 0x9000, 1, 0, DOMID_SELF)
    assert pv_rig.last().args["req"] == [{"cmd": "MACHPHYS_UPDATE", "ptr": 0x5000, "val": 77}]


def test_unknown_hypercalls_and_commands(rig: Rig) -> None:
    assert [rig.call(nr, 99, 8) for nr in (55, 39, SCHED_OP)] == [-Errno.ENOSYS] * 3
    assert [record.name for record in rig.records] == ["hypercall_55", "argo_op", "sched_op.99"]
    assert rig.records[0].args == {"arg0": 99, "arg1": 8, "arg2": 0, "arg3": 0, "arg4": 0, "arg5": 0}
    assert "arg0" not in rig.last().args, "the command is in the name"


def test_the_calls_of_a_multicall_come_before_it(rig: Rig) -> None:
    entries = [(XEN_VERSION, 0), (99,), (SCHED_OP, 0)]
    for index, (nr, *args) in enumerate(entries):
        rig.domain.put(0x9000 + index * 64, *((value, 8) for value in (nr, 0, *args, *[0] * (6 - len(args)))))
    assert rig.call(MULTICALL, 0x9000, 3) == 0
    assert [(record.name, record.depth, record.error) for record in rig.records] == [
        ("xen_version.version", 1, ""), ("hypercall_99", 1, "ENOSYS"), ("sched_op.yield", 1, ""), ("multicall", 0, ""),
    ]  # fmt: skip
    assert rig.domain.number(0x9000 + 8, 8) == 4 << 16 | 20, "the guest gets the results as ever"
    outer = rig.last()
    assert sum(record.latency_ns for record in rig.records[:-1]) <= outer.latency_ns


def test_a_multicall_within_a_multicall_is_refused_as_ever(rig: Rig) -> None:
    rig.domain.put(0x9000, (MULTICALL, 8), (0, 8), (0x9000, 8), (1, 8), *[(0, 8)] * 4)
    assert rig.call(MULTICALL, 0x9000, 1) == 0
    assert rig.domain.memory.read_u64(0x9008) == -Errno.EINVAL & (1 << 64) - 1
    assert [record.name for record in rig.records] == ["multicall"]


def test_a_call_that_the_end_of_the_domain_interrupts(rig: Rig) -> None:
    class DyingError(Exception):
        pass

    def die() -> None:
        raise DyingError

    call = rig.domain.call(CONSOLE_IO, 0, 1, 0x9000, checkpoint=die)
    with pytest.raises(DyingError):
        rig.domain.dispatch(call)
    assert rig.last().error == "interrupted"
    assert "interrupted" in line(rig.last())


def test_the_dispatch_that_was_there_before_is_used() -> None:
    with traced("hypercall") as rig:
        rig.tracer.detach()
        before = rig.domain.dispatch
        rig.domain.dispatch = lambda _call: -Errno.EBUSY
        with rig.tracer:
            assert rig.call(XEN_VERSION, 0) == -Errno.EBUSY
            assert rig.last().error == "EBUSY"
        rig.domain.dispatch = before


def test_a_sink_that_cannot_write_loses_the_trace_but_not_the_guest(
    rig: Rig, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_record: object) -> None:
        raise OSError(28, "No space left on device")

    rig.recorder.take = refuse
    assert rig.call(XEN_VERSION, 0) == rig.call(XEN_VERSION, 0) == 4 << 16 | 20
    assert capsys.readouterr().err.count("the trace ends here: No space left on device") == 1


@pytest.mark.parametrize(("name", "op"), OPS, ids=lambda value: str(getattr(value, "name", value)))
@pytest.mark.parametrize("fill", [0, 0xFF])
def test_every_structure_is_decoded_whatever_is_in_it(name: str, op: Op, fill: int) -> None:
    tag = op.struct
    value = ffi.new(f"struct {tag} *")
    ffi.buffer(value)[:] = bytes([fill]) * ffi.sizeof(f"struct {tag}")
    fields = decode(tag, value)
    assert fields
    json.dumps(fields)
