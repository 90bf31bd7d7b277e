"""Watches: who hears of what, and in which order."""

from __future__ import annotations

import pytest
from xs_rig import OK, Peer, error

from xenpy.abi.xs_wire import MsgType
from xenpy.errors import Errno
from xenpy.pv.xenstore import Quotas, Xenstore

HOME = "/local/domain/5"


@pytest.fixture
def store() -> Xenstore:
    return Xenstore()


@pytest.fixture
def dom0(store: Xenstore) -> Peer:
    return Peer(store)


@pytest.fixture
def guest(store: Xenstore) -> Peer:
    peer = Peer(store, 5)
    store.mkdir(HOME, ["n0", "r5"])
    return peer


def test_every_kind_of_change_fires(dom0: Peer, store: Xenstore) -> None:
    dom0.watch("/w", "t")
    store.write("/w/a/b", "1")
    assert dom0.take_events() == [("/w/a/b", "t")]
    store.write("/w/a/b", "1")
    assert dom0.take_events() == [("/w/a/b", "t")]
    store.set_perms("/w/a", ["r0"])
    assert dom0.take_events() == [("/w/a", "t")]
    store.mkdir("/w/c")
    assert dom0.take_events() == [("/w/c", "t")]
    store.mkdir("/w/c")
    store.write("/elsewhere", "")
    store.write("/ww", "")
    assert dom0.take_events() == []
    store.rm("/w/a")
    assert dom0.take_events() == [("/w/a", "t")]


def test_a_removal_reaches_watches_below_on_their_own_path_deepest_first(dom0: Peer, store: Xenstore) -> None:
    store.write("/a/b/c", "")
    for path in ("/a/b", "/a/b/c", "/a/b/absent", "/a"):
        dom0.watch(path, "t")
    store.rm("/a")
    assert dom0.take_events() == [("/a/b/c", "t"), ("/a/b", "t"), ("/a", "t")]


def test_the_reply_comes_before_the_events_of_the_request(dom0: Peer) -> None:
    dom0.watch("/a", "t")
    dom0.connection.feed(b"".join(_request(MsgType.XS_WRITE, b"/a/%d\0" % i) for i in range(2)))
    kinds = [message.type for message in dom0.messages()]
    assert kinds == [MsgType.XS_WRITE, MsgType.XS_WATCH_EVENT] * 2


def _request(kind: MsgType, payload: bytes) -> bytes:
    from xenpy.pv.xenstore.wire import encode

    return encode(kind, 1, 0, payload)


def test_an_event_that_waits_unread_is_not_queued_twice(guest: Peer, store: Xenstore) -> None:
    guest.watch("a", "t")
    for value in range(100):
        store.write(f"{HOME}/a", value)
    assert guest.take_events() == [("a", "t")]
    store.write(f"{HOME}/a", "x")
    assert guest.take_events() == [("a", "t")]


def test_several_watches_hear_in_the_order_of_their_setting(dom0: Peer, store: Xenstore) -> None:
    for path, token in (("/a/b", "1"), ("/", "2"), ("/a", "3"), ("/a/b", "4")):
        dom0.watch(path, token)
    store.write("/a/b", "")
    assert dom0.take_events() == [("/a/b", "1"), ("/a/b", "2"), ("/a/b", "3"), ("/a/b", "4")]


def test_relative_watches_report_relative_paths(guest: Peer, store: Xenstore) -> None:
    guest.watch("device", "rel")
    guest.watch(f"{HOME}/device", "abs")
    store.write(f"{HOME}/device/vbd", "")
    assert guest.take_events() == [("device/vbd", "rel"), (f"{HOME}/device/vbd", "abs")]


@pytest.mark.parametrize(("depth", "heard"), [("0", ["/w"]), ("1", ["/w", "/w/a"]), ("2", ["/w", "/w/a", "/w/a/b"])])
def test_depth_limits_how_far_below_a_change_is_heard(
    depth: str, heard: list[str], dom0: Peer, store: Xenstore
) -> None:
    dom0.watch("/w", "t", depth)
    for path in ("/w", "/w/a", "/w/a/b", "/w/a/b/c"):
        store.write(path, "")
    assert [path for path, _ in dom0.take_events()] == heard


def test_a_guest_hears_of_what_it_can_or_could_read(guest: Peer, store: Xenstore) -> None:
    guest.watch("/", "t")
    store.write("/secret/x", "")
    assert guest.take_events() == []
    store.write("/shared", "", ["n0", "r5"])
    assert guest.take_events() == [("/shared", "t")]
    store.set_perms("/shared", ["n0"])
    assert guest.take_events() == [("/shared", "t")], "it could read the node before"
    store.write("/shared", "x")
    assert guest.take_events() == []
    store.mkdir(f"{HOME}/hidden", ["n0"])
    guest.take_events()
    store.write(f"{HOME}/hidden", "1")
    assert guest.take_events() == [(f"{HOME}/hidden", "t")], "it can read the parent"


def test_watches_are_told_apart_by_path_and_token(dom0: Peer, store: Xenstore) -> None:
    dom0.watch("/a", "t")
    assert dom0.ask(MsgType.XS_WATCH, "/a", "t") == error(Errno.EEXIST)
    dom0.watch("/a", "u")
    assert dom0.ask(MsgType.XS_UNWATCH, "/a", "v") == error(Errno.ENOENT)
    assert dom0.ok(MsgType.XS_UNWATCH, "/a", "t") == OK
    store.write("/a", "")
    assert dom0.take_events() == [("/a", "u")]


@pytest.mark.parametrize("strings", [(), ("/a",), ("/a//b", "t"), ("", "t"), ("/a", "t", "x"), ("/a", "t", "1", "2")])
def test_malformed_watches(strings: tuple[str, ...], dom0: Peer) -> None:
    assert dom0.ask(MsgType.XS_WATCH, *strings) == error(Errno.EINVAL)


def test_reset_drops_watches_and_transactions(guest: Peer, store: Xenstore) -> None:
    guest.watch("a", "t")
    tx = guest.start()
    assert guest.ok(MsgType.XS_RESET_WATCHES, "") == OK
    store.write(f"{HOME}/a", "")
    assert guest.take_events() == []
    assert guest.end(tx) == error(Errno.ENOENT)
    assert store.accounts.of(5).watches == 0


def test_the_quota_on_watches() -> None:
    store = Xenstore(quotas=Quotas(watches=3))
    guest = Peer(store, 5)
    for token in "abcd":
        guest.watch("/a", token)
    assert guest.ask(MsgType.XS_WATCH, "/a", "e") == error(Errno.E2BIG)
    assert guest.ok(MsgType.XS_UNWATCH, "/a", "a") == OK
    guest.watch("/a", "e")
    dom0 = Peer(store)
    for token in range(10):
        dom0.watch("/a", str(token))


def test_special_watches(dom0: Peer, guest: Peer, store: Xenstore) -> None:
    for peer in (dom0, guest):
        peer.watch("@introduceDomain", "i")
        peer.watch("@releaseDomain", "r")
    store.introduce(6)
    store.introduce(6)
    assert dom0.take_events() == [("@introduceDomain", "i")]
    store.domain_shutdown(6)
    store.domain_shutdown(6)
    assert dom0.take_events() == [("@releaseDomain", "r")]
    store.resume(6)
    store.domain_shutdown(6)
    assert dom0.take_events() == [("@releaseDomain", "r")]
    assert guest.take_events() == []
    assert dom0.ok(MsgType.XS_SET_PERMS, "@releaseDomain", "n0", "r5") == OK
    store.release(6)
    assert dom0.take_events() == guest.take_events() == [("@releaseDomain", "r")]


def test_special_watches_name_the_domain_on_request(dom0: Peer, store: Xenstore) -> None:
    dom0.watch("@releaseDomain", "any", "1")
    dom0.watch("@releaseDomain/6", "six")
    for domid in (6, 7):
        store.introduce(domid)
        store.release(domid)
    assert dom0.take_events() == [
        ("@releaseDomain/6", "any"),
        ("@releaseDomain/6", "six"),
        ("@releaseDomain/7", "any"),
    ]


def test_a_guest_that_fetches_nothing_cannot_fill_the_memory() -> None:
    store = Xenstore(quotas=Quotas(memory=20000))
    guest = Peer(store, 5)
    store.mkdir(HOME, ["n0", "r5"])
    guest.watch("/", "t" * 100)
    for number in range(1000):
        store.write(f"{HOME}/{number}", "")
    assert guest.connection.output_size < 25000
    assert len(guest.take_events()) > 50
