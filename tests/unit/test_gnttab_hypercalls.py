"""grant_table_op, from the guest's structures and back, in both ABIs; and whatever else a guest may write."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import hypothesis.strategies as st
import pytest
from gnttab_rig import EMPTY_GFN, RAM_PAGES, three_domains
from hypercall_rig import ARGUMENT, Caller
from hypothesis import given, settings

from xenpy.abi import grant_table as abi
from xenpy.abi.event_channel import DOMID_SELF
from xenpy.errors import Errno
from xenpy.hypercalls import grant_table
from xenpy.memory import PAGE_SIZE
from xenpy.pv.gnttab import GrantError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gnttab_rig import Domain

GRANT_TABLE_OP = 20
LIST = 0x9000
ADDRESS = EMPTY_GFN * PAGE_SIZE


@pytest.fixture(params=[True, False], ids=["64", "32"])
def made(request: pytest.FixtureRequest) -> Iterator[tuple[Caller, Domain, Domain]]:
    with three_domains(max_frames=4) as (one, two, _):
        yield Caller(one.memory, wide=request.param, gnttab=one.gnttab), one, two


def test_every_command_is_handled() -> None:
    declared = {row.number for name, row in vars(abi).items() if name.startswith("GNTTABOP_")}
    assert declared == set(grant_table.grant_table_op.ops) == set(range(12)) - {3}


def test_size_and_version(made: tuple[Caller, Domain, Domain]) -> None:
    caller, _, _ = made
    result, op = caller.op(GRANT_TABLE_OP, abi.GNTTABOP_query_size, dom=DOMID_SELF, status=99)
    assert (result, op.nr_frames, op.max_nr_frames, op.status) == (0, 1, 4, 0)
    assert caller.op(GRANT_TABLE_OP, abi.GNTTABOP_set_version, version=2)[0] == 0
    result, op = caller.op(GRANT_TABLE_OP, abi.GNTTABOP_get_version, dom=DOMID_SELF)
    assert (result, op.version) == (0, 2)
    assert caller.op(GRANT_TABLE_OP, abi.GNTTABOP_set_version, version=3)[0] == -Errno.EINVAL
    for dom, errno, status in ((2, Errno.EPERM, abi.GNTST.permission_denied), (9, Errno.ESRCH, abi.GNTST.bad_domain)):
        assert caller.op(GRANT_TABLE_OP, abi.GNTTABOP_get_version, dom=dom)[0] == -errno
        assert caller.op(GRANT_TABLE_OP, abi.GNTTABOP_query_size, dom=dom)[1].status == status
        assert caller.op(GRANT_TABLE_OP, abi.GNTTABOP_setup_table, dom=dom)[1].status == status


def test_setup_table_writes_numbers_of_the_callers_width(made: tuple[Caller, Domain, Domain]) -> None:
    caller, one, _ = made
    one.memory.place(EMPTY_GFN, one.gnttab.frame(0))
    fields = {"dom": DOMID_SELF, "nr_frames": 2, "frame_list": LIST}
    result, op = caller.op(GRANT_TABLE_OP, abi.GNTTABOP_setup_table, **fields)
    assert (result, op.status) == (0, 0)
    size = 8 if caller.wide else 4
    assert one.memory.read(LIST, 2 * size) == EMPTY_GFN.to_bytes(size, "little") + b"\xff" * size
    fields["nr_frames"] = 5
    assert caller.op(GRANT_TABLE_OP, abi.GNTTABOP_setup_table, **fields)[1].status == abi.GNTST.general_error
    fields |= {"nr_frames": 1, "frame_list": RAM_PAGES * PAGE_SIZE - 2}
    result, op = caller.op(GRANT_TABLE_OP, abi.GNTTABOP_setup_table, **fields)
    assert (result, op.status) == (0, abi.GNTST.bad_virt_addr)


def test_some_commands_take_one_structure(made: tuple[Caller, Domain, Domain]) -> None:
    caller, _, _ = made
    for op in (abi.GNTTABOP_setup_table, abi.GNTTABOP_query_size, abi.GNTTABOP_get_status_frames):
        for count in (0, 2, 1 << 31):
            assert caller.call(GRANT_TABLE_OP, op.number, ARGUMENT, count) == -Errno.EINVAL
    assert caller.call(GRANT_TABLE_OP, abi.GNTTABOP_copy.number, ARGUMENT, 0) == 0
    assert caller.call(GRANT_TABLE_OP, abi.GNTTABOP_copy.number, ARGUMENT, 1 << 31) == -Errno.EINVAL


def test_map_and_unmap_many_each_with_its_status(made: tuple[Caller, Domain, Domain]) -> None:
    caller, one, two = made
    two.grant(9, 1, 4)
    maps = [
        {"host_addr": ADDRESS, "flags": abi.GNTMAP_host_map, "ref": 9, "dom": 2},
        {"host_addr": ADDRESS, "flags": abi.GNTMAP_host_map, "ref": 10, "dom": 2},
        {"host_addr": ADDRESS + PAGE_SIZE, "flags": abi.GNTMAP_host_map, "ref": 9, "dom": 2},
    ]
    result, ops = caller.ops(GRANT_TABLE_OP, abi.GNTTABOP_map_grant_ref, maps)
    assert (result, [op.status for op in ops]) == (0, [0, abi.GNTST.general_error, 0])
    assert one.memory.read(ADDRESS + PAGE_SIZE, 19) == two.mark(4)
    unmaps = [{"host_addr": maps[index]["host_addr"], "handle": ops[index].handle} for index in (0, 2, 0)]
    result, done = caller.ops(GRANT_TABLE_OP, abi.GNTTABOP_unmap_grant_ref, unmaps)
    assert (result, [op.status for op in done]) == (0, [0, 0, abi.GNTST.bad_handle])
    assert two.in_use(9) == 0


def test_copy_and_swap(made: tuple[Caller, Domain, Domain]) -> None:
    caller, one, two = made
    two.grant(9, 1, 4)
    ours = {"u": {"gmfn": 6}, "domid": DOMID_SELF, "offset": 3}
    theirs = {"u": {"ref": 9}, "domid": 2, "offset": 0}
    fields = {"source": theirs, "dest": ours, "len": 19, "flags": abi.GNTCOPY_source_gref}
    result, op = caller.op(GRANT_TABLE_OP, abi.GNTTABOP_copy, **fields)
    assert (result, op.status) == (0, 0)
    assert bytes(one.page(6)[3:22]) == two.mark(4)
    fields = {"source": ours, "dest": theirs, "len": 5000, "flags": abi.GNTCOPY_dest_gref}
    assert caller.op(GRANT_TABLE_OP, abi.GNTTABOP_copy, **fields)[1].status == abi.GNTST.bad_copy_arg
    one.grant(20, 2, 3)
    assert caller.op(GRANT_TABLE_OP, abi.GNTTABOP_swap_grant_ref, ref_a=20, ref_b=21)[1].status == 0
    assert bytes(one.entry(21)) == bytes.fromhex("0100 0200 03000000")


def test_what_hvm_guests_are_not_offered(made: tuple[Caller, Domain, Domain]) -> None:
    caller, _, _ = made
    for op in (abi.GNTTABOP_transfer, abi.GNTTABOP_unmap_and_replace, abi.GNTTABOP_get_status_frames):
        assert caller.op(GRANT_TABLE_OP, op)[0] == -Errno.ENOSYS
    for number in (3, 12, 100):
        assert caller.call(GRANT_TABLE_OP, number, ARGUMENT, 1) == -Errno.ENOSYS


def test_what_pv_guests_are_offered() -> None:
    with three_domains(2) as (one, _, _):
        caller = Caller(one.memory, is_pv=True, gnttab=one.gnttab)
        one.memory.place(EMPTY_GFN, one.gnttab.status_frame(0))
        fields = {"dom": DOMID_SELF, "nr_frames": 1, "frame_list": LIST}
        assert caller.op(GRANT_TABLE_OP, abi.GNTTABOP_get_status_frames, **fields)[1].status == 0
        assert one.memory.read_u64(LIST) == EMPTY_GFN
        _, op = caller.op(GRANT_TABLE_OP, abi.GNTTABOP_unmap_and_replace, handle=5)
        assert op.status == abi.GNTST.bad_handle


def test_long_arrays_let_others_in(made: tuple[Caller, Domain, Domain]) -> None:
    caller, one, _ = made
    one.memory.write(ARGUMENT, bytes(2 * PAGE_SIZE))
    assert caller.call(GRANT_TABLE_OP, abi.GNTTABOP_swap_grant_ref.number, ARGUMENT, 200) == 0
    assert caller.checkpoints == 3
    assert caller.call(GRANT_TABLE_OP, abi.GNTTABOP_swap_grant_ref.number, ARGUMENT, 1 << 20) == -Errno.EFAULT


FIELD = st.one_of(st.integers(0, 12), st.sampled_from([EMPTY_GFN, DOMID_SELF, 0xFFFF]))


@settings(max_examples=200)
@given(data=st.data(), version=st.sampled_from([1, 2]))
def test_no_table_and_no_argument_does_harm(data: st.DataObject, version: int) -> None:
    """Random tables and operations give statuses only, reach granted pages only, and end with nothing in use."""
    with three_domains(version, max_frames=2) as (one, two, three):
        caller = Caller(one.memory, gnttab=one.gnttab)
        size = 8 if version == 1 else 16
        for domain in (one, two):
            table = data.draw(st.binary(min_size=12 * size, max_size=12 * size))
            for gref in range(12):
                raw = bytearray(table[gref * size : (gref + 1) * size])
                raw[2:4] = (raw[2] % 3 + 1).to_bytes(2, "little")  # a domid that exists
                raw[4:8] = raw[4:8] if raw[0] & 0x80 else (raw[4] % 40).to_bytes(4, "little")
                raw[12:16] = bytes(len(raw[12:16]))
                domain.entry(gref)[:] = raw
        handles = []
        untouched = bytes(three.memory.read(0, RAM_PAGES * PAGE_SIZE))
        for _ in range(data.draw(st.integers(1, 12))):
            flags, ref, dom = data.draw(st.integers(0, 7)), data.draw(FIELD), data.draw(st.integers(1, 4))
            mapping = {"host_addr": ADDRESS + ref * PAGE_SIZE, "flags": flags, "ref": ref, "dom": dom}
            result, op = caller.op(GRANT_TABLE_OP, abi.GNTTABOP_map_grant_ref, **mapping)
            assert result == 0
            if op.status == 0:
                handles.append((mapping["host_addr"], op.handle))
            ends = [
                {"u": {"ref": data.draw(FIELD)}, "domid": data.draw(FIELD), "offset": data.draw(FIELD)}
                for _ in range(2)
            ]
            length, copy_flags = data.draw(st.sampled_from([1, 4096, 65535])), data.draw(st.integers(0, 3))
            fields = {"source": ends[0], "dest": ends[1], "len": length, "flags": copy_flags}
            result, op = caller.op(GRANT_TABLE_OP, abi.GNTTABOP_copy, **fields)
            assert result == 0
            assert op.status in set(abi.GNTST)
            for domid in (0, 2):
                with suppress(GrantError):
                    two.gnttab.map_page(domid, ref).close()
        for host_addr, handle in handles:
            one.gnttab.unmap_grant_ref(host_addr, 0, handle)
        assert [len(domain.gnttab.describe()) for domain in (one, two)] == [1, 1], "nothing is in use"
        assert bytes(three.memory.read(0, RAM_PAGES * PAGE_SIZE)) == untouched, "it granted nothing"
