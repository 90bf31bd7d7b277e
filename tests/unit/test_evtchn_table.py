"""The rules of event channels: who may bind what, and what each refusal is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from evtchn_rig import VCPUS, Guest, two_guests

from xenpy.abi.event_channel import DOMID_SELF, EVTCHNSTAT, VIRQ
from xenpy.errors import Errno, XenError
from xenpy.pv.evtchn import HostPorts

if TYPE_CHECKING:
    from collections.abc import Iterator

Pair = tuple[Guest, Guest, HostPorts]


@pytest.fixture
def pair() -> Iterator[Pair]:
    with two_guests() as made:
        yield made


def refused(errno: Errno, function, *args: int) -> None:
    with pytest.raises(XenError) as caught:
        function(*args)
    assert caught.value.errno is errno


def connect(one: Guest, two: Guest) -> tuple[int, int]:
    """Return the ports of an interdomain channel, with the event that binding makes pending taken."""
    port = one.evtchn.alloc_unbound(two.evtchn.domid)
    remote = two.evtchn.bind_interdomain(one.evtchn.domid, port)
    two.shared_info.clear_pending(remote)
    return port, remote


def test_ports_are_handed_out_from_1_and_reused_lowest_first(pair: Pair) -> None:
    evtchn = pair[0].evtchn
    assert [evtchn.bind_ipi(0) for _ in range(70)] == list(range(1, 71))
    for port in (40, 3, 69):
        evtchn.close(port)
    assert [evtchn.alloc_unbound(2) for _ in range(4)] == [3, 40, 69, 71]


def test_port_0_is_never_usable(pair: Pair) -> None:
    evtchn = pair[0].evtchn
    assert evtchn.status(0).status == EVTCHNSTAT.closed
    for operation in (evtchn.close, evtchn.send):
        refused(Errno.EINVAL, operation, 0)
    refused(Errno.EINVAL, evtchn.bind_vcpu, 0, 0)


@pytest.mark.parametrize("port", [64, 4096, 1 << 17, (1 << 32) - 1])
def test_ports_beyond_the_table_are_invalid(pair: Pair, port: int) -> None:
    evtchn = pair[0].evtchn
    for operation in (evtchn.close, evtchn.send, evtchn.status, evtchn.unmask, evtchn.is_pending, evtchn.check_port):
        refused(Errno.EINVAL, operation, port)
    refused(Errno.EINVAL, evtchn.bind_vcpu, port, 0)
    refused(Errno.EINVAL, evtchn.set_priority, port, 0)
    refused(Errno.EINVAL, evtchn.bind_interdomain, 2, port)


def test_a_closed_port_within_the_table_has_a_status_and_polls_as_idle(pair: Pair) -> None:
    evtchn = pair[0].evtchn
    assert evtchn.status(63).status == EVTCHNSTAT.closed
    assert not evtchn.is_pending(63)
    evtchn.unmask(63)
    refused(Errno.EINVAL, evtchn.send, 63)
    refused(Errno.EINVAL, evtchn.close, 63)


def test_the_domain_may_have_so_many_ports_and_no_more() -> None:
    with two_guests(max_ports=100) as (one, _, _):
        assert [one.evtchn.bind_ipi(0) for _ in range(99)][-1] == 99
        refused(Errno.ENOSPC, one.evtchn.bind_ipi, 0)
        one.evtchn.close(50)
        assert one.evtchn.alloc_unbound(2) == 50


@pytest.mark.parametrize(("bits", "ports"), [(64, 4096), (32, 1024)])
def test_the_2_level_abi_has_a_bit_for_each_port_and_no_more(bits: int, ports: int) -> None:
    with two_guests(max_ports=1 << 17) as (one, _, _):
        one.shared_info.set_word_size(bits)
        for _ in range(ports - 1):
            last = one.evtchn.bind_ipi(0)
        assert last == ports - 1
        refused(Errno.ENOSPC, one.evtchn.bind_ipi, 0)
        one.evtchn.send(last)
        assert one.drain_2l(0) == [last]


def test_events_on_ports_a_32_bit_guest_has_no_bit_for_touch_nothing() -> None:
    with two_guests(max_ports=4096) as (one, _, _):
        high = [one.evtchn.bind_ipi(0) for _ in range(1100)][-1]
        one.shared_info.set_word_size(32)
        before = bytes(one.shared_info.view)
        one.evtchn.send(high)
        one.evtchn.unmask(high)
        assert not one.evtchn.is_pending(high)
        one.evtchn.close(high)
        assert bytes(one.shared_info.view) == before


# -- interdomain ------------------------------------------------------------------------------------------------------


def test_binding_makes_the_local_port_pending_and_connects_both(pair: Pair) -> None:
    one, two, _ = pair
    port = one.evtchn.alloc_unbound(2)
    assert one.evtchn.status(port).status == EVTCHNSTAT.unbound
    assert one.evtchn.status(port).remote_domid == 2
    two.evtchn.bind_ipi(0)
    remote = two.evtchn.bind_interdomain(1, port)
    assert (port, remote) == (1, 2)
    assert two.upcalls == [0]
    assert two.drain_2l(0) == [remote]
    assert one.upcalls == []
    status = one.evtchn.status(port)
    assert (status.status, status.remote_domid, status.remote_port) == (EVTCHNSTAT.interdomain, 2, remote)


def test_send_reaches_the_other_end_only(pair: Pair) -> None:
    one, two, _ = pair
    port, remote = connect(one, two)
    two.take_upcalls()
    one.evtchn.send(port)
    assert (one.evtchn.is_pending(port), two.evtchn.is_pending(remote)) == (False, True)
    two.evtchn.send(remote)
    assert one.evtchn.is_pending(port)


def test_send_to_an_unbound_port_is_dropped(pair: Pair) -> None:
    one, _, _ = pair
    port = one.evtchn.alloc_unbound(2)
    one.evtchn.send(port)
    assert not one.evtchn.is_pending(port)
    assert one.upcalls == []


def test_closing_an_end_leaves_the_other_unbound_for_the_closer(pair: Pair) -> None:
    one, two, _ = pair
    port, remote = connect(one, two)
    two.evtchn.close(remote)
    status = one.evtchn.status(port)
    assert (status.status, status.remote_domid) == (EVTCHNSTAT.unbound, 2)
    assert two.evtchn.status(remote).status == EVTCHNSTAT.closed
    again = two.evtchn.bind_interdomain(1, port)
    one.evtchn.send(port)
    assert two.evtchn.is_pending(again)


def test_loopback(pair: Pair) -> None:
    evtchn = pair[0].evtchn
    port = evtchn.alloc_unbound(DOMID_SELF)
    assert evtchn.status(port).remote_domid == 1
    remote = evtchn.bind_interdomain(DOMID_SELF, port)
    evtchn.send(remote)
    assert evtchn.is_pending(port)
    evtchn.close(port)
    assert evtchn.status(remote).status == EVTCHNSTAT.unbound


def test_only_an_unbound_port_meant_for_us_can_be_bound(pair: Pair) -> None:
    one, two, _ = pair
    ipi = one.evtchn.bind_ipi(0)
    for_someone_else = one.evtchn.alloc_unbound(7)
    port, _ = connect(one, two)
    for taken in (ipi, for_someone_else, port, 0, 60):
        refused(Errno.EINVAL, two.evtchn.bind_interdomain, 1, taken)
    refused(Errno.ESRCH, two.evtchn.bind_interdomain, 9, 1)
    assert two.evtchn.bind_ipi(0) == 2, "a refused binding uses up no port"


# -- virtual interrupts and IPIs --------------------------------------------------------------------------------------


def test_a_per_vcpu_virq_is_bound_once_a_vcpu_and_raised_there(pair: Pair) -> None:
    one, _, _ = pair
    ports = [one.evtchn.bind_virq(VIRQ.TIMER, vcpu_id) for vcpu_id in range(VCPUS)]
    refused(Errno.EEXIST, one.evtchn.bind_virq, VIRQ.TIMER, 1)
    one.evtchn.raise_virq(VIRQ.TIMER, 2)
    assert one.take_upcalls() == [2]
    assert one.drain_2l(2) == [ports[2]]
    one.evtchn.close(ports[2])
    one.evtchn.raise_virq(VIRQ.TIMER, 2)
    assert one.upcalls == []
    assert one.evtchn.bind_virq(VIRQ.TIMER, 2) == ports[2]


def test_a_global_virq_is_bound_on_vcpu_0_and_may_move(pair: Pair) -> None:
    one, _, _ = pair
    refused(Errno.EINVAL, one.evtchn.bind_virq, VIRQ.ARGO, 1)
    port = one.evtchn.bind_virq(VIRQ.ARGO, 0)
    one.evtchn.bind_vcpu(port, 2)
    one.evtchn.raise_virq(VIRQ.ARGO)
    assert one.take_upcalls() == [2]
    refused(Errno.EEXIST, one.evtchn.bind_virq, VIRQ.ARGO, 0)
    one.evtchn.close(port)
    assert one.evtchn.bind_virq(VIRQ.ARGO, 0) == port
    assert one.evtchn.status(port).vcpu_id == 0


def test_bad_virqs_and_vcpus(pair: Pair) -> None:
    evtchn = pair[0].evtchn
    refused(Errno.EINVAL, evtchn.bind_virq, 24, 0)
    refused(Errno.EINVAL, evtchn.bind_virq, (1 << 32) - 1, 0)
    refused(Errno.ENOENT, evtchn.bind_virq, VIRQ.TIMER, VCPUS)
    refused(Errno.ENOENT, evtchn.bind_ipi, VCPUS)
    refused(Errno.ENOENT, evtchn.bind_vcpu, evtchn.alloc_unbound(2), VCPUS)
    refused(Errno.ENOENT, evtchn.init_control, 8, 0, VCPUS)
    refused(Errno.EPERM, evtchn.bind_pirq, 1)


def test_ipis_and_per_vcpu_virqs_stay_on_their_vcpu(pair: Pair) -> None:
    one, _, _ = pair
    ipi, timer = one.evtchn.bind_ipi(1), one.evtchn.bind_virq(VIRQ.TIMER, 1)
    for port in (ipi, timer):
        refused(Errno.EINVAL, one.evtchn.bind_vcpu, port, 2)
    refused(Errno.EINVAL, one.evtchn.send, timer)
    one.evtchn.send(ipi)
    assert one.take_upcalls() == [1]
    assert one.evtchn.status(ipi).status == EVTCHNSTAT.ipi
    assert (one.evtchn.status(timer).status, one.evtchn.status(timer).virq) == (EVTCHNSTAT.virq, VIRQ.TIMER)


# -- 2-level delivery -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [64, 32])
def test_an_upcall_is_made_once_until_the_guest_takes_it(pair: Pair, bits: int) -> None:
    one, _, _ = pair
    one.shared_info.set_word_size(bits)
    first, second = one.evtchn.bind_ipi(1), one.evtchn.bind_ipi(1)
    for port in (first, first, second):
        one.evtchn.send(port)
    assert one.upcalls == [1]
    assert one.polled == [first, second], "pollers hear of a port that becomes pending, once"
    assert one.drain_2l(1) == [first, second]
    one.evtchn.send(second)
    assert one.upcalls == [1, 1]


@pytest.mark.parametrize("bits", [64, 32])
def test_a_masked_event_waits_for_unmask(pair: Pair, bits: int) -> None:
    one, _, _ = pair
    one.shared_info.set_word_size(bits)
    port = [one.evtchn.bind_ipi(1) for _ in range(bits + 3)][-1]
    one.shared_info.set_mask(port)
    one.evtchn.send(port)
    assert (one.upcalls, one.polled) == ([], [port])
    assert one.drain_2l(1) == []
    one.evtchn.unmask(port)
    assert one.take_upcalls() == [1]
    assert one.drain_2l(1) == [port]
    one.evtchn.unmask(port)
    assert one.upcalls == []


def test_bind_vcpu_moves_later_events(pair: Pair) -> None:
    one, two, _ = pair
    port, remote = connect(one, two)
    one.evtchn.bind_vcpu(port, 2)
    two.evtchn.send(remote)
    assert one.take_upcalls() == [2]
    assert one.evtchn.status(port).vcpu_id == 2


def test_closing_takes_a_pending_event_back(pair: Pair) -> None:
    one, _, _ = pair
    port = one.evtchn.bind_ipi(0)
    one.evtchn.send(port)
    one.evtchn.close(port)
    assert one.drain_2l(0) == []
    assert not one.evtchn.is_pending(one.evtchn.bind_ipi(0))


def test_the_2_level_abi_has_neither_priorities_nor_an_array(pair: Pair) -> None:
    evtchn = pair[0].evtchn
    refused(Errno.ENOSYS, evtchn.set_priority, evtchn.bind_ipi(0), 1)
    refused(Errno.EOPNOTSUPP, evtchn.expand_array, 40)


# -- the whole table --------------------------------------------------------------------------------------------------


def test_destroy_leaves_peers_unbound_and_allows_nothing_new(pair: Pair) -> None:
    one, two, host = pair
    port, _ = connect(one, two)
    for_host = one.evtchn.alloc_unbound(0)
    host_port = host.bind_interdomain(1, for_host)
    one.evtchn.destroy()
    assert host.status(host_port).status == EVTCHNSTAT.unbound
    assert two.evtchn.status(1).status == EVTCHNSTAT.unbound
    two.evtchn.send(1)
    host.send(host_port)
    refused(Errno.EINVAL, one.evtchn.bind_ipi, 0)
    assert one.evtchn.status(port).status == EVTCHNSTAT.closed


def test_restore_brings_back_what_snapshot_saw(pair: Pair) -> None:
    one, two, _ = pair
    port, _ = connect(one, two)
    one.evtchn.bind_vcpu(port, 1)
    timers = [one.evtchn.bind_virq(VIRQ.TIMER, vcpu_id) for vcpu_id in range(VCPUS)]
    virq, ipi, unbound = one.evtchn.bind_virq(VIRQ.ARGO, 0), one.evtchn.bind_ipi(2), one.evtchn.alloc_unbound(5)
    one.evtchn.bind_vcpu(virq, 2)
    saved = one.evtchn.snapshot()
    copy = one.fresh_table(3)
    copy.restore(saved)
    assert (copy.status(port).status, copy.status(port).remote_domid) == (EVTCHNSTAT.unbound, 2)
    for same in (*timers, virq, ipi, unbound):
        assert copy.status(same) == one.evtchn.status(same)
    refused(Errno.EEXIST, copy.bind_virq, VIRQ.ARGO, 0)
    copy.raise_virq(VIRQ.TIMER, 1)
    assert one.drain_2l(1) == [timers[1]]
    copy.close(virq)
    assert copy.bind_virq(VIRQ.ARGO, 0) == virq


def test_describe_tells_each_bound_port(pair: Pair) -> None:
    one, two, _ = pair
    port, remote = connect(one, two)
    timer = one.evtchn.bind_virq(VIRQ.TIMER, 1)
    one.shared_info.set_mask(timer)
    one.evtchn.raise_virq(VIRQ.TIMER, 1)
    first, second = one.evtchn.describe()
    assert first.split() == [str(port), "[--]", "interdomain", "vcpu=0", "priority=7", "domid=2", f"port={remote}"]
    assert second.split()[:3] == [str(timer), "[pm]", "virq"]
