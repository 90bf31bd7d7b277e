"""The FIFO ABI: set-up, queues, priorities, moves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from evtchn_rig import (
    ARRAY_GFN,
    CONTROL_GFN,
    CONTROL_OFFSET,
    LINK_MASK,
    LINKED,
    MASKED,
    PENDING,
    RAM_PAGES,
    FifoGuest,
    Guest,
    ipis,
    two_guests,
)

from xenpy.errors import Errno, XenError
from xenpy.memory import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def guest() -> Iterator[Guest]:
    with two_guests(max_ports=1 << 17) as (one, _, _):
        yield one


def refused(errno: Errno, function: Callable[..., object], *args: int) -> None:
    with pytest.raises(XenError) as caught:
        function(*args)
    assert caught.value.errno is errno


# -- set-up -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gfn", "offset"),
    [
        (CONTROL_GFN, PAGE_SIZE - 71), (CONTROL_GFN, PAGE_SIZE), (CONTROL_GFN, (1 << 32) - 8), (CONTROL_GFN, 4),
        (RAM_PAGES, 0), (1 << 40, 0), ((1 << 64) - 1, 0),
    ],
)  # fmt: skip
def test_a_bad_control_block_is_refused_and_leaves_the_2_level_abi(guest: Guest, gfn: int, offset: int) -> None:
    refused(Errno.EINVAL, guest.evtchn.init_control, gfn, offset, 0)
    assert not guest.evtchn.is_fifo
    guest.evtchn.send(guest.evtchn.bind_ipi(0))
    assert guest.drain_2l(0) == [1]


def test_a_control_block_may_end_with_its_page_and_is_set_once(guest: Guest) -> None:
    assert guest.evtchn.init_control(CONTROL_GFN, PAGE_SIZE - 72, 1) == 17
    assert guest.evtchn.is_fifo
    refused(Errno.EINVAL, guest.evtchn.init_control, CONTROL_GFN, 0, 1)
    assert guest.evtchn.init_control(CONTROL_GFN, 0, 2) == 17


def test_its_pages_stay_memory_that_may_be_written_to(guest: Guest) -> None:
    held: list[int] = []
    guest.evtchn.guard_writes(lambda gfn: gfn != CONTROL_GFN + 1 and not held.append(gfn), held.remove)
    refused(Errno.EINVAL, guest.evtchn.init_control, CONTROL_GFN + 1, 0, 0)
    refused(Errno.EINVAL, guest.evtchn.init_control, CONTROL_GFN, 1, 0)
    assert held == [], "what was refused is not held"
    assert not guest.evtchn.is_fifo
    guest.evtchn.init_control(CONTROL_GFN, 0, 0)
    refused(Errno.EINVAL, guest.evtchn.expand_array, CONTROL_GFN + 1)
    guest.evtchn.expand_array(CONTROL_GFN)
    assert held == [CONTROL_GFN, CONTROL_GFN]
    guest.evtchn.reset()
    assert held == []


def test_the_array_takes_128_pages_of_ram(guest: Guest) -> None:
    guest.evtchn.init_control(CONTROL_GFN, 0, 0)
    refused(Errno.EINVAL, guest.evtchn.expand_array, RAM_PAGES)
    guest.memory.release(50)
    refused(Errno.EINVAL, guest.evtchn.expand_array, 50)
    for _ in range(128):
        guest.evtchn.expand_array(ARRAY_GFN)
    refused(Errno.ENOSPC, guest.evtchn.expand_array, ARRAY_GFN)


def test_events_pending_under_the_2_level_abi_come_again_when_the_array_has_their_words(guest: Guest) -> None:
    ports = [guest.evtchn.bind_ipi(1) for _ in range(3)]
    guest.shared_info.set_mask(ports[1])
    guest.evtchn.send(ports[0])
    guest.evtchn.send(ports[1])
    guest.take_upcalls()
    fifo = FifoGuest(guest, pages=0)
    assert guest.evtchn.is_pending(ports[0])
    for index in range(1024):
        fifo.words[index] = 0  # a guest that masks nothing
    guest.evtchn.expand_array(ARRAY_GFN)
    assert guest.take_upcalls() == [1]
    assert fifo.drain(1) == [ports[0], ports[1]]


def test_an_event_without_a_word_waits_for_it(guest: Guest) -> None:
    fifo = FifoGuest(guest, pages=1)
    high = [guest.evtchn.bind_ipi(0) for _ in range(1030)][-1]
    guest.evtchn.send(high)
    guest.evtchn.unmask(high)
    assert guest.evtchn.is_pending(high)
    assert guest.upcalls == []
    fifo.add_page(1)
    assert fifo.words[high] & (PENDING | MASKED) == PENDING | MASKED
    fifo.unmask(high)
    assert fifo.drain(0) == [high]
    assert not guest.evtchn.is_pending(high)


def test_an_event_that_waited_is_gone_when_its_port_is_closed(guest: Guest) -> None:
    fifo = FifoGuest(guest, pages=0)
    port = guest.evtchn.bind_ipi(0)
    guest.evtchn.send(port)
    guest.evtchn.close(port)
    assert guest.evtchn.bind_ipi(0) == port
    fifo.add_page(0)
    fifo.unmask(port)
    assert fifo.drain(0) == []


def test_without_a_control_block_an_event_stays_pending_and_unlinked(guest: Guest) -> None:
    fifo = FifoGuest(guest, vcpus=1)
    (port,) = ipis(guest, fifo, 1, vcpu_id=2)
    guest.evtchn.send(port)
    assert fifo.words[port] == PENDING
    assert guest.upcalls == []
    guest.evtchn.init_control(CONTROL_GFN + 2, CONTROL_OFFSET, 2)
    guest.evtchn.unmask(port)
    assert guest.upcalls == [2]
    assert fifo.drain(2) == [port]


def test_reset_goes_back_to_the_2_level_abi_and_forgets_the_pages(guest: Guest) -> None:
    fifo = FifoGuest(guest)
    (port,) = ipis(guest, fifo, 1)
    guest.evtchn.send(port)
    guest.evtchn.reset()
    before = bytes(fifo.words)
    assert not guest.evtchn.is_fifo
    assert guest.evtchn.bind_ipi(0) == port
    assert [saved.last_queue for saved in guest.evtchn.snapshot().ports] == [None]
    guest.take_upcalls()
    guest.evtchn.send(port)
    assert guest.drain_2l(0) == [port]
    assert bytes(fifo.words) == before
    again = FifoGuest(guest)
    again.unmask(port)
    guest.evtchn.send(port)
    assert again.drain(0) == [port]


# -- queues -----------------------------------------------------------------------------------------------------------


def test_events_come_in_the_order_they_were_sent(guest: Guest) -> None:
    fifo = FifoGuest(guest)
    ports = ipis(guest, fifo, 5)
    order = [ports[index] for index in (3, 0, 4, 1)]
    for port in (*order, *order):
        guest.evtchn.send(port)
    assert guest.upcalls == [0]
    assert guest.polled == order
    assert fifo.drain(0) == order
    assert [fifo.words[port] & (PENDING | LINKED | LINK_MASK) for port in ports] == [0] * 5


def test_higher_priorities_come_first(guest: Guest) -> None:
    fifo = FifoGuest(guest)
    low, middle, high = ipis(guest, fifo, 3)
    guest.evtchn.set_priority(low, 15)
    guest.evtchn.set_priority(high, 0)
    refused(Errno.EINVAL, guest.evtchn.set_priority, high, 16)
    refused(Errno.EACCES, guest.evtchn.set_priority, 60, 1)
    for port in (low, middle, high):
        guest.evtchn.send(port)
    assert fifo.block(0)[0] == 1 << 15 | 1 << 7 | 1 << 0
    assert fifo.drain(0) == [high, middle, low]


def test_a_masked_event_is_queued_by_unmask(guest: Guest) -> None:
    fifo = FifoGuest(guest)
    (port,) = ipis(guest, fifo, 1)
    fifo.mask(port)
    guest.evtchn.send(port)
    assert fifo.words[port] == PENDING | MASKED
    assert fifo.drain(0) == []
    fifo.unmask(port)
    assert guest.upcalls == [0]
    assert fifo.drain(0) == [port]


def test_an_event_sent_again_while_queued_is_taken_once(guest: Guest) -> None:
    fifo = FifoGuest(guest)
    a, b = ipis(guest, fifo, 2)
    for port in (a, b, a):
        guest.evtchn.send(port)
    assert fifo.take_one(0) == (7, a, True)
    guest.evtchn.send(a)  # off the queue, hence appended behind b
    assert fifo.drain(0) == [b, a]


def test_the_tail_sent_again_after_it_was_taken_starts_the_queue_anew(guest: Guest) -> None:
    fifo = FifoGuest(guest)
    a, b = ipis(guest, fifo, 2)
    guest.evtchn.send(a)
    assert fifo.drain(0) == [a]
    guest.evtchn.send(a)
    guest.evtchn.send(b)
    assert fifo.words[a] & LINK_MASK == b, "not a, which would make the queue circular"
    assert fifo.drain(0) == [a, b]


@pytest.mark.parametrize("move", ["vcpu", "priority"])
def test_a_port_that_moves_takes_its_old_queue_along_with_nothing(guest: Guest, move: str) -> None:
    """The last word of a queue moves to another queue; what is appended to the first one then must not land in the second."""
    fifo = FifoGuest(guest)
    port = guest.evtchn.alloc_unbound(1)
    sender = guest.evtchn.bind_interdomain(1, port)
    other = guest.evtchn.bind_ipi(0)
    for bound in (port, other):
        fifo.unmask(bound)
    guest.evtchn.send(sender)
    assert fifo.drain(0) == [port]
    if move == "vcpu":
        guest.evtchn.bind_vcpu(port, 1)
    else:
        guest.evtchn.set_priority(port, 3)
    guest.take_upcalls()
    guest.evtchn.send(sender)
    guest.evtchn.send(other)
    assert fifo.words[port] & LINK_MASK == 0
    if move == "vcpu":
        assert guest.take_upcalls() == [0, 1]
        assert (fifo.drain(0), fifo.drain(1)) == ([other], [port])
    else:
        assert fifo.drain(0) == [port, other]


def test_a_port_that_moves_while_queued_is_taken_where_it_was(guest: Guest) -> None:
    fifo = FifoGuest(guest)
    port = guest.evtchn.alloc_unbound(1)
    sender = guest.evtchn.bind_interdomain(1, port)
    fifo.unmask(port)
    guest.evtchn.send(sender)
    guest.evtchn.bind_vcpu(port, 1)
    guest.evtchn.send(sender)
    assert fifo.drain(1) == []
    assert fifo.drain(0) == [port]
    guest.evtchn.send(sender)
    assert fifo.drain(1) == [port]


def test_a_closed_port_is_not_reused_while_the_guest_has_it_queued(guest: Guest) -> None:
    fifo = FifoGuest(guest)
    a, b = ipis(guest, fifo, 2)
    guest.evtchn.send(a)
    guest.evtchn.close(a)
    assert guest.evtchn.bind_ipi(0) == b + 1
    assert fifo.drain(0) == [], "the event was taken back"
    assert guest.evtchn.bind_ipi(0) == a


def test_ports_of_later_array_pages_link_to_earlier_ones(guest: Guest) -> None:
    fifo = FifoGuest(guest, pages=2)
    ports = [guest.evtchn.bind_ipi(0) for _ in range(2000)]
    for port in (1, 1023, 1024, 2000):
        fifo.unmask(port)
    for port in (2000, 1, 1024, 1023):
        guest.evtchn.send(port)
    assert len(ports) == 2000
    assert fifo.drain(0) == [2000, 1, 1024, 1023]


def test_a_copy_carries_on_where_the_original_was_saved(guest: Guest) -> None:
    fifo = FifoGuest(guest)
    a, b = ipis(guest, fifo, 2)
    guest.evtchn.set_priority(b, 2)
    guest.evtchn.send(a)
    saved = guest.evtchn.snapshot()
    copy = guest.fresh_table(3)
    copy.restore(saved)
    assert copy.is_fifo
    copy.send(b)
    c = copy.bind_ipi(0)
    fifo.unmask(c)
    copy.send(c)
    assert fifo.drain(0) == [b, a, c]
    copy.destroy()
