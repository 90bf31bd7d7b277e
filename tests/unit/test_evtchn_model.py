"""Event channels against models: no event is lost or invented, however guest and hypervisor interleave."""

from __future__ import annotations

import threading

import hypothesis.strategies as st
import pytest
from evtchn_rig import MASKED, VCPUS, FifoGuest, two_guests
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from xenpy.abi.event_channel import EVTCHNSTAT
from xenpy.errors import Errno, XenError

PORTS = st.integers(1, 12)
VCPU_IDS = st.integers(0, VCPUS - 1)


class Deliveries(RuleBasedStateMachine):
    """One guest with both ends of a few channels; `due` are the ports whose event the guest has yet to see."""

    @initialize(fifo=st.booleans())
    def start(self, fifo: bool) -> None:
        self._context = two_guests()
        self.guest, self.peer, _ = self._context.__enter__()
        self.fifo = FifoGuest(self.guest) if fifo else None
        self.senders: dict[int, int] = {}
        self.due: set[int] = set()
        for _ in range(6):
            self.bind()

    def teardown(self) -> None:
        if hasattr(self, "guest"):
            for port in self.senders:
                self.unmask(port)
            for vcpu_id in range(VCPUS):
                self.take(vcpu_id, 10_000)
            assert not self.due, "events were lost"
            self._context.__exit__(None, None, None)

    @rule()
    def bind(self) -> None:
        port = self.guest.evtchn.alloc_unbound(2)
        if self.fifo is not None:
            self.fifo.unmask(port)
        else:
            self.guest.shared_info.clear_mask(port)
        self.senders[port] = self.peer.evtchn.bind_interdomain(1, port)

    @rule(port=PORTS)
    def close(self, port: int) -> None:
        if port in self.senders:
            self.guest.evtchn.close(port)
            self.peer.evtchn.close(self.senders.pop(port))
            self.due.discard(port)

    @rule(port=PORTS)
    def send(self, port: int) -> None:
        if port in self.senders:
            self.peer.evtchn.send(self.senders[port])
            self.due.add(port)

    @rule(port=PORTS, vcpu_id=VCPU_IDS)
    def bind_vcpu(self, port: int, vcpu_id: int) -> None:
        if port in self.senders:
            self.guest.evtchn.bind_vcpu(port, vcpu_id)

    @precondition(lambda self: self.fifo is not None)
    @rule(port=PORTS, priority=st.integers(0, 15))
    def set_priority(self, port: int, priority: int) -> None:
        if port in self.senders:
            self.guest.evtchn.set_priority(port, priority)

    @rule(port=PORTS)
    def mask(self, port: int) -> None:
        if self.fifo is not None:
            self.fifo.mask(port)
        else:
            self.guest.shared_info.set_mask(port)

    @rule(port=PORTS)
    def unmask(self, port: int) -> None:
        if self.fifo is not None:
            self.fifo.unmask(port)
        else:
            self.guest.evtchn.unmask(port)

    @rule(vcpu_id=VCPU_IDS, steps=st.integers(1, 4))
    def take(self, vcpu_id: int, steps: int) -> None:
        if self.fifo is None:
            taken = self.guest.drain_2l(vcpu_id)
        else:
            self.guest.shared_info.vcpu_info[vcpu_id].view[0] = 0
            found = [self.fifo.take_one(vcpu_id) for _ in range(min(steps, 200))]
            taken = [step[1] for step in found if step is not None and step[2]]
        assert len(taken) == len(set(taken))
        assert set(taken) <= self.due, "events were invented"
        self.due -= set(taken)

    @invariant()
    def pending_is_what_is_due(self) -> None:
        if hasattr(self, "guest"):
            assert {port for port in self.senders if self.guest.evtchn.is_pending(port)} == self.due


TestDeliveries = Deliveries.TestCase
TestDeliveries.settings = settings(max_examples=60, stateful_step_count=40)


class Bindings(RuleBasedStateMachine):
    """Two domains bind and close at random; `state` is what each port ought to be."""

    @initialize()
    def start(self) -> None:
        self._context = two_guests()
        one, two, host = self._context.__enter__()
        self.tables = {1: one.evtchn, 2: two.evtchn, 0: host}
        self.state: dict[tuple[int, int], tuple[object, ...]] = {}

    def teardown(self) -> None:
        if hasattr(self, "tables"):
            self._context.__exit__(None, None, None)

    def lowest(self, domid: int) -> int:
        return next(port for port in range(1, 1024) if (domid, port) not in self.state)

    @rule(domid=st.integers(0, 2), remote=st.integers(0, 3))
    def alloc_unbound(self, domid: int, remote: int) -> None:
        port = self.tables[domid].alloc_unbound(remote)
        assert port == self.lowest(domid)
        self.state[domid, port] = (EVTCHNSTAT.unbound, remote)

    @rule(domid=st.integers(0, 2), remote=st.integers(0, 3), remote_port=st.integers(0, 70))
    def bind_interdomain(self, domid: int, remote: int, remote_port: int) -> None:
        table = self.tables[domid]
        if self.state.get((remote, remote_port)) != (EVTCHNSTAT.unbound, domid):
            with pytest.raises(XenError) as caught:
                table.bind_interdomain(remote, remote_port)
            assert caught.value.errno is (Errno.ESRCH if remote == 3 else Errno.EINVAL)
            return
        expected = self.lowest(domid)
        port = table.bind_interdomain(remote, remote_port)
        assert port == expected
        self.state[remote, remote_port] = (EVTCHNSTAT.interdomain, domid, port)
        self.state[domid, port] = (EVTCHNSTAT.interdomain, remote, remote_port)

    @rule(domid=st.integers(0, 2))
    def bind_ipi(self, domid: int) -> None:
        self.state[domid, self.tables[domid].bind_ipi(0)] = (EVTCHNSTAT.ipi,)

    @rule(domid=st.integers(0, 2), port=st.integers(0, 10))
    def close(self, domid: int, port: int) -> None:
        was = self.state.pop((domid, port), None)
        if was is None:
            with pytest.raises(XenError):
                self.tables[domid].close(port)
            return
        self.tables[domid].close(port)
        if was[0] is EVTCHNSTAT.interdomain:
            self.state[was[1], was[2]] = (EVTCHNSTAT.unbound, domid)

    @invariant()
    def ports_are_what_they_ought_to_be(self) -> None:
        if not hasattr(self, "tables"):
            return
        for domid, table in self.tables.items():
            for port in range(1, 12):
                status = table.status(port)
                found: tuple[object, ...] = (status.status,)
                if status.status == EVTCHNSTAT.interdomain:
                    found += (status.remote_domid, status.remote_port)
                elif status.status == EVTCHNSTAT.unbound:
                    found += (status.remote_domid,)
                assert found == self.state.get((domid, port), (EVTCHNSTAT.closed,))


TestBindings = Bindings.TestCase
TestBindings.settings = settings(max_examples=60, stateful_step_count=40)


@pytest.mark.parametrize("masking", [False, True], ids=["plain", "masking"])
def test_no_event_is_lost_to_a_guest_that_runs_meanwhile(masking: bool) -> None:
    """Each event announces a number; the guest reads it after taking the event, so the last one read must be the last announced."""
    rounds, ports = 4000, 4
    with two_guests() as (one, two, _):
        fifo = FifoGuest(one)
        mine = [one.evtchn.alloc_unbound(2) for _ in range(ports)]
        theirs = [two.evtchn.bind_interdomain(1, port) for port in mine]
        announced, seen = dict.fromkeys(mine, 0), dict.fromkeys(mine, 0)
        lock, done = threading.Lock(), threading.Event()
        for port in mine:
            fifo.unmask(port)

        def guest() -> None:
            while True:
                last = done.is_set()
                step = fifo.take_one(0)
                if step is None and last:
                    return
                if step is None or not step[2]:
                    continue
                port = step[1]
                seen[port] = announced[port]
                if masking:
                    fifo.mask(port)
                    word = fifo.update(port, clear=MASKED)
                    if word >> 31:
                        with lock:  # what a hypercall would take
                            one.evtchn.unmask(port)

        thread = threading.Thread(target=guest)
        thread.start()
        for number in range(1, rounds + 1):
            index = number * 7919 % ports
            announced[mine[index]] = number
            with lock:
                two.evtchn.send(theirs[index])
        done.set()
        thread.join(60)
        assert not thread.is_alive()
        assert seen == announced
