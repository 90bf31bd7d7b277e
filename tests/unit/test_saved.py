"""What is saved of a guest: each part's state comes back as it was, also by way of JSON."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import pytest
from evtchn_rig import FifoGuest, Guest

from xenpy.codec import CodecError, decode, encode
from xenpy.errors import XenError
from xenpy.framepool import FramePool
from xenpy.memory import PAGE_SHIFT, PAGE_SIZE, GuestMemory
from xenpy.pv.evtchn.port import ChannelsState
from xenpy.pv.time import SystemClock, TimersState, VcpuTimers
from xenpy.pv.xenstore import Xenstore
from xenpy.pv.xenstore.saved import (
    ConnectionState,
    NodeState,
    load_connection,
    load_domain_nodes,
    save_connection,
    save_domain_nodes,
)
from xenpy.pv.xenstore.wire import encode as message

if TYPE_CHECKING:
    from xenpy.pv.xenstore.connection import Connection

T = TypeVar("T")
GPA, PAGES = 1 << 20, 64


def through_json(kind: type[T], value: T) -> T:
    return decode(kind, json.loads(json.dumps(encode(value))))


# -- memory -----------------------------------------------------------------------------------------------------------


def filled() -> GuestMemory:
    memory = GuestMemory()
    memory.add_ram(GPA, PAGES * PAGE_SIZE)
    for page in range(PAGES):
        memory.write(GPA + page * PAGE_SIZE, bytes([page]) * PAGE_SIZE)
    return memory


def page(memory: GuestMemory, number: int) -> int:
    data = memory.read(GPA + number * PAGE_SIZE, PAGE_SIZE)
    assert data == data[:1] * PAGE_SIZE
    return data[0]


def test_frozen_memory_is_everybodys_own() -> None:
    parent, one, two = filled(), GuestMemory(), GuestMemory()
    view = parent.view(GPA, PAGE_SIZE)
    ram = parent.freeze()
    ram.seal()
    one.adopt(ram)
    two.adopt(ram)
    ram.close()
    view[:] = b"\xaa" * PAGE_SIZE
    one.write(GPA, b"\xbb" * PAGE_SIZE)
    assert [page(memory, 0) for memory in (parent, one, two)] == [0xAA, 0xBB, 0]
    assert [page(memory, 7) for memory in (parent, one, two)] == [7, 7, 7]
    assert {memory.ram_pages for memory in (parent, one, two)} == {PAGES}
    assert one.regions == tuple(replace(region, hva=one.hva(region.gpa)) for region in parent.regions)
    view.release()
    for memory in (parent, one, two):
        memory.close()


def test_a_fork_is_frozen_again_with_its_own_changes() -> None:
    parent, child, grandchild = filled(), GuestMemory(), GuestMemory()
    first = parent.freeze()
    first.seal()
    child.adopt(first)
    child.write(GPA + 3 * PAGE_SIZE, b"\xcc" * PAGE_SIZE)
    second = child.freeze()
    second.seal()
    grandchild.adopt(second)
    child.write(GPA + 4 * PAGE_SIZE, b"\xdd" * PAGE_SIZE)
    assert [page(grandchild, number) for number in (2, 3, 4)] == [2, 0xCC, 4]
    for thing in (first, second, parent, child, grandchild):
        thing.close()


def test_ballooning_and_placed_pages_of_private_memory() -> None:
    parent, child, pool = filled(), GuestMemory(), FramePool(4)
    gfn = GPA >> PAGE_SHIFT
    parent.release(gfn + 5)
    ram = parent.freeze()
    ram.seal()
    child.adopt(ram)
    assert (child.ram_pages, child.is_ram(gfn + 5)) == (PAGES - 1, False)
    assert child.populate(gfn + 5)
    assert page(child, 5) == 0
    assert child.release(gfn + 6)
    assert child.populate(gfn + 6)
    assert (page(child, 6), page(parent, 6)) == (0, 6)
    frame = pool.allocate()
    pool.view(frame)[:] = b"\xee" * PAGE_SIZE
    child.place(gfn + 8, frame)
    assert (page(child, 8), page(parent, 8)) == (0xEE, 8)
    child.unplace(gfn + 8)
    assert page(child, 8) == 0
    own = child.frame_of(gfn + 9)
    assert own is not None
    with pytest.raises(XenError, match="nobody else's to map"):
        parent.place(gfn + 9, own)
    for thing in (ram, parent, child, pool):
        thing.close()


def test_memory_that_somebody_else_writes_to_is_not_sealed() -> None:
    memory, other = filled(), GuestMemory()
    frame = memory.frame_of(GPA >> PAGE_SHIFT)
    assert frame is not None
    other.place(0, frame)
    ram = memory.freeze()
    with pytest.raises(OSError, match="busy"):
        ram.seal()
    for thing in (ram, memory, other):
        thing.close()


# -- event channels, timers -------------------------------------------------------------------------------------------


def random_table(guest: Guest, seed: int) -> None:
    """Have a guest do something with all kinds of ports."""
    moves = random.Random(seed)
    for _ in range(60):
        match moves.randrange(5):
            case 0:
                guest.evtchn.alloc_unbound(moves.choice([0, 7]))
            case 1:
                guest.evtchn.bind_ipi(moves.randrange(3))
            case 2:
                virq, vcpu_id = moves.choice([(0, 0), (0, 1), (1, 2), (2, 0)])
                with suppress(XenError):  # bound already
                    guest.evtchn.bind_virq(virq, vcpu_id)
            case _:
                ports = [port.number for port in guest.evtchn.snapshot().ports]
                if not ports:
                    continue
                port = moves.choice(ports)
                with suppress(XenError):  # nothing can be sent by a VIRQ
                    moves.choice([guest.evtchn.close, guest.evtchn.send, guest.evtchn.unmask])(port)


@pytest.mark.parametrize("fifo", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_event_channels_come_back(seed: int, fifo: bool) -> None:
    guest = Guest(3, {})
    if fifo:
        FifoGuest(guest)
    random_table(guest, seed)
    saved = guest.evtchn.snapshot()
    assert through_json(ChannelsState, saved) == saved
    copy = guest.fresh_table(3)
    copy.restore(saved)
    assert copy.snapshot() == saved
    copy.destroy()


def test_a_closed_port_that_ends_a_queue_is_not_linked_to_itself() -> None:
    guest = Guest(3, {})
    fifo = FifoGuest(guest)
    first, second = (guest.evtchn.bind_ipi(0) for _ in range(2))
    for port in (first, second):
        fifo.unmask(port)
    guest.evtchn.send(first)
    assert fifo.drain(0) == [first]
    guest.evtchn.close(first)
    copy = guest.fresh_table(3)
    copy.restore(guest.evtchn.snapshot())
    again = copy.bind_ipi(0)
    assert again == first
    fifo.unmask(again)
    copy.send(again)
    copy.send(second)
    assert fifo.drain(0) == [again, second]
    copy.destroy()


def test_timers_come_back() -> None:
    guest = Guest(3, {})
    clock = SystemClock()
    timers, copy = (VcpuTimers(clock, guest.evtchn, 0, lambda: None) for _ in range(2))
    timers.set_singleshot(10**15)
    timers.set_periodic(5_000_000)
    saved = timers.state()
    assert through_json(TimersState, saved) == saved
    copy.restore(saved)
    assert (copy.state(), copy.next_deadline()) == (saved, timers.next_deadline())


# -- xenstore ---------------------------------------------------------------------------------------------------------


def guest_of(store: Xenstore, domid: int) -> Connection:
    store.add_domain(domid)
    connection = store.connect(domid)
    store.introduce(domid, connection)
    return connection


def say(connection: Connection, kind: int, *parts: bytes, tx_id: int = 0) -> None:
    connection.feed(message(kind, 1, tx_id, b"\0".join((*parts, b""))))


WATCH, WRITE, TRANSACTION_START, TRANSACTION_END, DIRECTORY = 4, 11, 6, 7, 1


def test_a_domains_part_of_the_store_comes_back() -> None:
    store = Xenstore()
    connection = guest_of(store, 5)
    store.mkdir("/local/domain/5", ["n0", "r5"])
    store.write("/local/domain/5/vm", "/vm/x")
    store.write("/vm/x/name", "guest", ["n0", "r5"])
    store.mkdir("/local/domain/5/data", ["n5"])
    store.write("/local/domain/0/backend/vbd/5/51712/state", 4, ["n0", "r5"])
    say(connection, WATCH, b"data", b"token")
    say(connection, WATCH, b"/local/domain/0/backend/vbd/5/51712/state", b"other")
    say(connection, WRITE, b"data/a", b"1")
    say(connection, TRANSACTION_START, b"")
    connection.take_output(30)
    connection.feed(b"\1\0\0")
    nodes, saved = save_domain_nodes(store, 5), save_connection(connection, broken=False)
    assert through_json(tuple[NodeState, ...], nodes) == nodes
    assert through_json(ConnectionState, saved) == saved

    other = Xenstore()
    copy = guest_of(other, 5)
    load_domain_nodes(other, nodes)
    load_connection(copy, saved)
    assert save_domain_nodes(other, 5) == nodes
    assert save_connection(copy, broken=False) == saved
    assert other.accounts.of(5).nodes == store.accounts.of(5).nodes
    assert other.accounts.of(5).memory == store.accounts.of(5).memory
    rest = connection.take_output()
    assert copy.take_output() == rest
    other.write("/local/domain/0/backend/vbd/5/51712/state", 5)
    assert b"other" in copy.take_output()


def test_a_transaction_is_asked_to_start_again() -> None:
    store = Xenstore()
    connection = guest_of(store, 5)
    tx_id = connection.start_transaction()
    saved = save_connection(connection, broken=False)
    other = Xenstore()
    copy = guest_of(other, 5)
    load_connection(copy, saved)
    other.mkdir("/local/domain/5/data", ["n5"])
    other.mkdir("/local/domain/5/data/there", ["n5"])
    say(copy, DIRECTORY, b"data", tx_id=tx_id)
    assert b"there" in copy.take_output()
    say(copy, TRANSACTION_END, b"T", tx_id=tx_id)
    assert b"EAGAIN" in copy.take_output()


# -- the codec --------------------------------------------------------------------------------------------------------


class Colour(IntEnum):
    RED = 1


class Pair(NamedTuple):
    left: int
    right: bytes


@dataclass(frozen=True)
class Thing:
    number: int | None
    colour: Colour
    pairs: tuple[Pair, ...]
    table: dict[tuple[int, int], str]


THING = Thing(None, Colour.RED, (Pair(1, b"\xff\0"),), {(1, 2): "x"})


def test_plain_data_survives_json() -> None:
    assert through_json(Thing, THING) == THING


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"number": "1"}, "number"),
        ({"number": True}, "number"),
        ({"colour": 9}, "colour"),
        ({"pairs": [[1]]}, r"pairs\[0\]"),
        ({"pairs": [[1, "?"]]}, r"pairs\[0\]\[1\]"),
        ({"table": {}}, "table"),
        ({"more": 1}, "more"),
    ],
)
def test_data_that_does_not_fit_is_refused_by_its_place(change: dict[str, object], path: str) -> None:
    with pytest.raises(CodecError, match=path):
        decode(Thing, {**encode(THING), **change})
