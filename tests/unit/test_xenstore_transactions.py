"""Transactions: isolation, conflicts, quotas."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from xs_rig import OK, Peer, Reply, error

from xenpy.abi.xs_wire import MsgType
from xenpy.errors import Errno
from xenpy.pv.xenstore import Quotas, Xenstore

if TYPE_CHECKING:
    from collections.abc import Callable

COMMITTED = Reply(MsgType.XS_TRANSACTION_END, OK)


@pytest.fixture
def store() -> Xenstore:
    return Xenstore()


@pytest.fixture
def peer(store: Xenstore) -> Peer:
    return Peer(store)


@pytest.fixture
def other(store: Xenstore) -> Peer:
    return Peer(store)


def test_changes_are_seen_inside_at_once_and_outside_after_the_commit(peer: Peer, other: Peer) -> None:
    tx = peer.start()
    peer.write("/a", b"1", tx)
    assert peer.read("/a", tx) == b"1"
    assert other.ask(MsgType.XS_READ, "/a") == error(Errno.ENOENT)
    assert peer.end(tx) == COMMITTED
    assert other.read("/a") == b"1"


def test_an_aborted_transaction_leaves_no_trace(peer: Peer) -> None:
    tx = peer.start()
    peer.write("/a/b", b"1", tx)
    assert peer.end(tx, "F") == COMMITTED
    assert peer.ask(MsgType.XS_READ, "/a") == error(Errno.ENOENT)
    assert peer.end(tx) == error(Errno.ENOENT)


def test_reads_repeat_whatever_others_write(peer: Peer, other: Peer) -> None:
    peer.write("/a", b"old")
    tx = peer.start()
    assert peer.read("/a", tx) == b"old"
    other.write("/a", b"new")
    assert peer.read("/a", tx) == b"old"
    assert peer.end(tx) == error(Errno.EAGAIN)


CONFLICTS: dict[str, tuple[Callable[[Peer, int], object], Callable[[Peer], object]]] = {
    "read, written": (lambda p, tx: p.read("/d/x", tx), lambda o: o.write("/d/x", b"2")),
    "read, same value written": (lambda p, tx: p.read("/d/x", tx), lambda o: o.write("/d/x", b"1")),
    "read, removed": (lambda p, tx: p.read("/d/x", tx), lambda o: o.ask(MsgType.XS_RM, "/d/x")),
    "read, permissions set": (lambda p, tx: p.read("/d/x", tx), lambda o: o.ask(MsgType.XS_SET_PERMS, "/d/x", "r0")),
    "absent, created": (lambda p, tx: p.ask(MsgType.XS_READ, "/d/new", tx=tx), lambda o: o.write("/d/new", b"")),
    "listed, child created": (lambda p, tx: p.ask(MsgType.XS_DIRECTORY, "/d", tx=tx), lambda o: o.write("/d/y", b"")),
    "both create in one directory": (lambda p, tx: p.write("/d/y", b"", tx), lambda o: o.write("/d/z", b"")),
    "removed, child written": (lambda p, tx: p.ask(MsgType.XS_RM, "/d", tx=tx), lambda o: o.write("/d/x", b"2")),
}


@pytest.mark.parametrize("name", CONFLICTS)
def test_a_change_of_what_the_transaction_touched_is_a_conflict(name: str, peer: Peer, other: Peer) -> None:
    inside, outside = CONFLICTS[name]
    peer.write("/d/x", b"1")
    tx = peer.start()
    inside(peer, tx)
    outside(other)
    assert peer.end(tx) == error(Errno.EAGAIN)


def test_changes_elsewhere_are_no_conflict(peer: Peer, other: Peer) -> None:
    peer.write("/d/x", b"1")
    peer.write("/e/x", b"1")
    tx = peer.start()
    peer.write("/d/x", b"2", tx)
    other.write("/e/x", b"2")
    assert peer.end(tx) == COMMITTED


def test_of_two_overlapping_transactions_the_first_to_end_wins(peer: Peer, other: Peer) -> None:
    peer.write("/n", b"0")
    first, second = peer.start(), other.start()
    for one, tx in ((peer, first), (other, second)):
        one.write("/n", b"%d" % (int(one.read("/n", tx)) + 1), tx)
    assert other.end(second) == COMMITTED
    assert peer.end(first) == error(Errno.EAGAIN)
    assert peer.read("/n") == b"1"


def test_transaction_ids(peer: Peer, other: Peer) -> None:
    tx = peer.start()
    assert peer.ask(MsgType.XS_TRANSACTION_START, "", tx=tx) == error(Errno.EBUSY)
    assert other.ask(MsgType.XS_READ, "/", tx=tx) == error(Errno.ENOENT)
    assert peer.ask(MsgType.XS_READ, "/", tx=99) == error(Errno.ENOENT)
    assert peer.ask(MsgType.XS_TRANSACTION_END, "T") == error(Errno.ENOENT)
    assert peer.ask(MsgType.XS_TRANSACTION_END, "X", tx=tx) == error(Errno.EINVAL)
    assert peer.end(tx) == COMMITTED


def test_events_come_with_the_commit_once_per_node(peer: Peer, other: Peer) -> None:
    other.watch("/", "t")
    tx = peer.start()
    peer.write("/a/b", b"1", tx)
    peer.write("/a/b", b"2", tx)
    peer.write("/gone", b"", tx)
    peer.ok(MsgType.XS_RM, "/gone", tx=tx)
    assert other.take_events() == []
    assert peer.end(tx) == COMMITTED
    assert other.take_events() == [("/a/b", "t")]


def test_a_failed_commit_fires_nothing(peer: Peer, other: Peer) -> None:
    peer.write("/a", b"0")
    tx = peer.start()
    peer.write("/a", b"1", tx)
    other.write("/a", b"2")
    other.watch("/", "t")
    assert peer.end(tx) == error(Errno.EAGAIN)
    assert other.take_events() == []


def test_quotas_on_transactions() -> None:
    store = Xenstore(quotas=Quotas(transactions=2, transaction_nodes=4))
    guest = Peer(store, 5)
    store.mkdir("/s", ["b0"])
    for name in "abcdef":
        store.write(f"/s/{name}", name)
    transactions = [guest.start() for _ in range(3)]
    assert guest.ask(MsgType.XS_TRANSACTION_START, "") == error(Errno.ENOSPC)
    for name in "abcd":
        guest.read(f"/s/{name}", transactions[0])
    assert guest.ask(MsgType.XS_READ, "/s/e", tx=transactions[0]) == error(Errno.ENOSPC)
    assert guest.end(transactions[0]) == error(Errno.ENOMEM), "a transaction of which a part is missing must not commit"
    assert guest.start()


def test_a_transaction_that_ran_out_of_room_does_not_commit() -> None:
    store = Xenstore(quotas=Quotas(node_size=100))
    guest = Peer(store, 5)
    store.mkdir("/s", ["b0"])
    tx = guest.start()
    guest.write("/s/a", b"1", tx)
    assert guest.ask(MsgType.XS_WRITE, "/s/b", tx=tx, raw=bytes(100)) == error(Errno.ENOSPC)
    assert guest.end(tx) == error(Errno.ENOMEM)
    assert not store.exists("/s/a")
