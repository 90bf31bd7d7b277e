"""event_channel_op, from the guest's structures and back, in both ABIs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import hypothesis.strategies as st
import pytest
from evtchn_rig import CONTROL_GFN, CONTROL_OFFSET, RAM_PAGES, two_guests
from hypercall_rig import ARGUMENT, Caller
from hypothesis import given, settings

from xenpy.abi import event_channel as abi
from xenpy.errors import Errno
from xenpy.hypercalls import event_channel
from xenpy.memory import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from evtchn_rig import Guest

EVENT_CHANNEL_OP = 32
DOMID_SELF = abi.DOMID_SELF


@pytest.fixture(params=[True, False], ids=["64", "32"])
def made(request: pytest.FixtureRequest) -> Iterator[tuple[Caller, Guest, Guest]]:
    with two_guests() as (one, two, _):
        yield Caller(one.memory, wide=request.param, evtchn=one.evtchn), one, two


def test_every_command_is_handled() -> None:
    declared = {row.number for name, row in vars(abi).items() if name.startswith("EVTCHNOP_")}
    assert declared == set(event_channel.event_channel_op.ops) == set(range(14))


def test_a_channel_from_end_to_end(made: tuple[Caller, Guest, Guest]) -> None:
    caller, one, two = made
    result, op = caller.op(EVENT_CHANNEL_OP, abi.EVTCHNOP_alloc_unbound, dom=DOMID_SELF, remote_dom=2)
    assert (result, op.port) == (0, 1)
    result, status = caller.op(EVENT_CHANNEL_OP, abi.EVTCHNOP_status, dom=DOMID_SELF, port=1)
    assert (result, status.status, status.u.unbound.dom) == (0, abi.EVTCHNSTAT.unbound, 2)
    two.evtchn.bind_ipi(0)
    theirs = two.evtchn.bind_interdomain(1, 1)
    _, status = caller.op(EVENT_CHANNEL_OP, abi.EVTCHNOP_status, dom=1, port=1)
    assert (status.u.interdomain.dom, status.u.interdomain.port) == (2, theirs)
    assert caller.op(EVENT_CHANNEL_OP, abi.EVTCHNOP_bind_vcpu, port=1, vcpu=2)[0] == 0
    assert caller.op(EVENT_CHANNEL_OP, abi.EVTCHNOP_send, port=1)[0] == 0
    assert two.evtchn.is_pending(theirs)
    two.evtchn.send(theirs)
    assert one.upcalls == [2]
    assert caller.op(EVENT_CHANNEL_OP, abi.EVTCHNOP_close, port=1)[0] == 0
    assert caller.op(EVENT_CHANNEL_OP, abi.EVTCHNOP_send, port=1)[0] == -Errno.EINVAL
    port = two.evtchn.alloc_unbound(1)
    result, op = caller.op(EVENT_CHANNEL_OP, abi.EVTCHNOP_bind_interdomain, remote_dom=2, remote_port=port)
    assert (result, op.local_port) == (0, 1)
    assert one.evtchn.is_pending(1)


def test_virqs_ipis_and_pirqs(made: tuple[Caller, Guest, Guest]) -> None:
    caller, _, _ = made
    result, op = caller.op(EVENT_CHANNEL_OP, abi.EVTCHNOP_bind_virq, virq=abi.VIRQ.TIMER, vcpu=1)
    assert (result, op.port) == (0, 1)
    result, op = caller.op(EVENT_CHANNEL_OP, abi.EVTCHNOP_bind_virq, virq=abi.VIRQ.TIMER, vcpu=1, port=77)
    assert (result, op.port) == (-Errno.EEXIST, 77), "nothing is copied back on failure"
    assert caller.op(EVENT_CHANNEL_OP, abi.EVTCHNOP_bind_ipi, vcpu=2)[1].port == 2
    assert caller.op(EVENT_CHANNEL_OP, abi.EVTCHNOP_bind_pirq, pirq=1)[0] == -Errno.EPERM
    status = caller.op(EVENT_CHANNEL_OP, abi.EVTCHNOP_status, dom=DOMID_SELF, port=1)[1]
    assert (status.status, status.vcpu, status.u.virq) == (abi.EVTCHNSTAT.virq, 1, abi.VIRQ.TIMER)


def test_fifo(made: tuple[Caller, Guest, Guest]) -> None:
    caller, one, _ = made
    assert caller.op(EVENT_CHANNEL_OP, abi.EVTCHNOP_expand_array, array_gfn=40)[0] == -Errno.EOPNOTSUPP
    fields = {"control_gfn": CONTROL_GFN, "offset": CONTROL_OFFSET, "vcpu": 0}
    result, op = caller.op(EVENT_CHANNEL_OP, abi.EVTCHNOP_init_control, **fields)
    assert (result, op.link_bits) == (0, 17)
    assert caller.op(EVENT_CHANNEL_OP, abi.EVTCHNOP_expand_array, array_gfn=40)[0] == 0
    port = one.evtchn.bind_ipi(0)
    assert caller.op(EVENT_CHANNEL_OP, abi.EVTCHNOP_set_priority, port=port, priority=15)[0] == 0
    one.evtchn.send(port)
    assert one.memory.read(CONTROL_GFN * PAGE_SIZE + CONTROL_OFFSET, 4) == (1 << 15).to_bytes(4, "little")
    assert caller.op(EVENT_CHANNEL_OP, abi.EVTCHNOP_unmask, port=port)[0] == 0
    assert caller.op(EVENT_CHANNEL_OP, abi.EVTCHNOP_reset, dom=DOMID_SELF)[0] == 0
    assert not one.evtchn.is_fifo
    assert one.evtchn.describe() == []


@pytest.mark.parametrize("op", [abi.EVTCHNOP_alloc_unbound, abi.EVTCHNOP_status, abi.EVTCHNOP_reset])
def test_other_domains_ports_are_not_ours_to_touch(made: tuple[Caller, Guest, Guest], op: abi.Op) -> None:
    caller, _, _ = made
    assert caller.op(EVENT_CHANNEL_OP, op, dom=2)[0] == -Errno.EPERM
    assert caller.op(EVENT_CHANNEL_OP, op, dom=9)[0] == -Errno.ESRCH


def test_bad_pointers_and_commands(made: tuple[Caller, Guest, Guest]) -> None:
    caller, _, _ = made
    for gva in (RAM_PAGES * PAGE_SIZE, RAM_PAGES * PAGE_SIZE - 2, 1 << 39, (1 << 64) - 4):
        assert caller.call(EVENT_CHANNEL_OP, abi.EVTCHNOP_status.number, gva) == -Errno.EFAULT
    assert caller.call(EVENT_CHANNEL_OP, 14, ARGUMENT) == -Errno.ENOSYS
    assert len(caller.logged) == 1


@settings(max_examples=300)
@given(
    calls=st.lists(st.tuples(st.integers(0, 15), st.binary(min_size=24, max_size=24)), max_size=30), wide=st.booleans()
)
def test_whatever_a_guest_passes_it_gets_a_number(calls: list[tuple[int, bytes]], wide: bool) -> None:
    with two_guests() as (one, two, host):
        caller = Caller(one.memory, wide=wide, evtchn=one.evtchn)
        for number, argument in calls:
            # Mostly small fields, or next to no call gets beyond the first check.
            one.memory.write(ARGUMENT, bytes(byte % 3 if index % 4 == 0 else 0 for index, byte in enumerate(argument)))
            assert -200 < caller.call(EVENT_CHANNEL_OP, number, ARGUMENT) <= 0
            one.memory.write(ARGUMENT, argument)
            assert -200 < caller.call(EVENT_CHANNEL_OP, number, ARGUMENT) <= 0
        assert two.evtchn.describe() == host.describe() == []
