"""Requests, domains, quotas and control commands; arbitrary requests."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xs_rig import OK, Peer, error

from xenpy.abi.xs_wire import MsgType
from xenpy.errors import ConfigError, Errno, XenError
from xenpy.pv.xenstore import Quotas, Xenstore
from xenpy.pv.xenstore.control import find_problems
from xenpy.pv.xenstore.wire import MessageReader, ProtocolError, encode

HOME = "/local/domain/5"
PRIVILEGED = (
    MsgType.XS_CONTROL,
    MsgType.XS_INTRODUCE,
    MsgType.XS_RELEASE,
    MsgType.XS_IS_DOMAIN_INTRODUCED,
    MsgType.XS_RESUME,
    MsgType.XS_SET_TARGET,
)


@pytest.mark.parametrize("kind", PRIVILEGED)
def test_guests_may_not_do_dom0_s_business(kind: MsgType, guest: Peer) -> None:
    assert guest.ask(kind, "5", "6") == error(Errno.EACCES)


@pytest.mark.parametrize("kind", [MsgType.XS_WATCH_EVENT, MsgType.XS_ERROR, MsgType.XS_INVALID])
def test_types_that_are_no_requests(kind: MsgType, dom0: Peer, guest: Peer) -> None:
    assert dom0.ask(kind) == guest.ask(kind) == error(Errno.ENOSYS)


@pytest.mark.parametrize(
    "kind", [MsgType.XS_READ, MsgType.XS_DIRECTORY, MsgType.XS_MKDIR, MsgType.XS_RM, MsgType.XS_WRITE]
)
def test_a_path_without_its_nul_is_invalid(kind: MsgType, dom0: Peer) -> None:
    assert dom0.ask(kind, raw=b"/tool") == error(Errno.EINVAL)
    assert dom0.ask(kind) == error(Errno.EINVAL)


def test_domains_are_introduced_and_released(dom0: Peer, guest: Peer, store: Xenstore) -> None:
    assert dom0.ok(MsgType.XS_IS_DOMAIN_INTRODUCED, "5") == b"T\0"
    assert dom0.ok(MsgType.XS_IS_DOMAIN_INTRODUCED, "6") == b"F\0"
    assert dom0.ok(MsgType.XS_GET_DOMAIN_PATH, "6") == b"/local/domain/6\0"
    assert dom0.ok(MsgType.XS_RESUME, "5") == OK
    assert dom0.ok(MsgType.XS_RELEASE, "5") == OK
    assert guest.connection.closed
    assert dom0.ask(MsgType.XS_RELEASE, "5") == error(Errno.ENOENT)
    assert dom0.ask(MsgType.XS_RELEASE, "0") == error(Errno.EINVAL)
    assert dom0.ask(MsgType.XS_INTRODUCE, "5", "1", "2") == error(Errno.ENOENT), "nobody here can map a ring"


def test_introduce_over_the_wire_asks_the_host() -> None:
    class Host:
        def __init__(self) -> None:
            self.calls: list[tuple[int, ...]] = []

        def introduce(self, domid: int, gfn: int, port: int) -> None:
            if domid == 9:
                raise XenError(Errno.EINVAL)
            self.calls.append((domid, gfn, port))

        def release(self, domid: int) -> None:
            self.calls.append((domid,))

    host = Host()
    dom0 = Peer(Xenstore(hooks=host))
    assert dom0.ok(MsgType.XS_INTRODUCE, "5", "1044476", "3") == OK
    assert dom0.ask(MsgType.XS_INTRODUCE, "9", "1", "3") == error(Errno.EINVAL)
    assert dom0.ask(MsgType.XS_INTRODUCE, "5", "1") == error(Errno.EINVAL)
    assert host.calls == [(5, 1044476, 3)]


def test_release_removes_the_domain_s_nodes_and_makes_its_other_permissions_stale(dom0: Peer, store: Xenstore) -> None:
    guest = Peer(store, 5)
    store.write("/mine/below", "x", ["n0"])
    store.set_perms("/mine", ["n5"])
    store.write("/shared", "x", ["n0", "b5"])
    guest.read("/shared")
    store.release(5)
    assert not store.exists("/mine")
    assert find_problems(store) == []
    again = Peer(store, 5)
    assert again.ask(MsgType.XS_READ, "/shared") == error(Errno.EACCES)
    store.set_perms("/shared", ["n0", "b5"])
    assert again.read("/shared") == b"x"


def test_the_root_stays_when_its_owner_goes(store: Xenstore) -> None:
    store.add_domain(5)
    store.set_perms("/", ["r5"])
    store.forget(5)
    assert [str(perm) for perm in store.get_perms("/")] == ["r0"]
    assert find_problems(store) == []


def test_a_device_model_acts_for_its_target(dom0: Peer, guest: Peer, store: Xenstore) -> None:
    model = Peer(store, 6)
    assert model.ask(MsgType.XS_READ, f"{HOME}/data") == error(Errno.EACCES)
    assert dom0.ok(MsgType.XS_SET_TARGET, "6", "5") == OK
    model.write(f"{HOME}/data/x", b"1")
    assert dom0.ask(MsgType.XS_SET_TARGET, "6", "7") == error(Errno.ENOENT)
    store.release(5)
    assert model.ask(MsgType.XS_READ, HOME) == error(Errno.EACCES)


@pytest.mark.parametrize(
    ("quotas", "requests", "errno"),
    [
        (Quotas(nodes=3), [("data/a", b""), ("data/b", b""), ("data/c", b"")], Errno.ENOSPC),
        (Quotas(nodes=3), [("data/a/b/c", b"")], Errno.ENOSPC),
        (Quotas(node_size=200), [("data/a", bytes(200))], Errno.ENOSPC),
        (Quotas(node_size=100), [(f"data/{'x' * 40}", b""), (f"data/{'y' * 40}", b"")], Errno.ENOSPC),
        (Quotas(path_max=8), [("data/abcd", b"")], Errno.EINVAL),
        (Quotas(memory=3000), [("data/a", bytes(1500)), ("data/b", bytes(1500)), ("data/c", b"")], Errno.ENOMEM),
    ],
)
def test_quotas_hold_a_guest_and_dom0_not(quotas: Quotas, requests: list[tuple[str, bytes]], errno: Errno) -> None:
    store = Xenstore()
    guest, dom0 = Peer(store, 5), Peer(store)
    store.mkdir(f"{HOME}/data", ["n5"])
    store.domains[5].quotas = quotas
    *fitting, last = requests
    for path, value in fitting:
        guest.write(path, value)
    assert guest.ask(MsgType.XS_WRITE, last[0], raw=last[1]) == error(errno)
    assert find_problems(store) == []
    dom0.write(f"{HOME}/{last[0]}", last[1])


def test_quotas_are_named_as_on_the_wire() -> None:
    assert Quotas.parse([("node-size", 5), ("nodes", 6)]) == Quotas(node_size=5, nodes=6)
    with pytest.raises(ConfigError, match=r"'nodse'.*nodes.*permissions"):
        Quotas.parse([("nodse", 5)])


def test_requests_wait_while_replies_are_not_fetched() -> None:
    store = Xenstore(quotas=Quotas(outstanding=3))
    connection = store.connect(5)
    connection.feed(b"".join(encode(MsgType.XS_GET_DOMAIN_PATH, number, 0, b"1\0") for number in range(5)))
    reader = MessageReader()
    reader.feed(connection.take_output())
    assert [message.req_id for message in iter(reader.next, None)] == [0, 1, 2]
    connection.process()
    reader.feed(connection.take_output())
    assert [message.req_id for message in iter(reader.next, None)] == [3, 4]


def test_output_is_taken_in_pieces(dom0: Peer) -> None:
    dom0.connection.feed(encode(MsgType.XS_DIRECTORY, 1, 0, b"/\0") * 3)
    pieces = list(iter(lambda: dom0.connection.take_output(7), b""))
    assert {len(piece) for piece in pieces[:-1]} == {7}
    reader = MessageReader()
    reader.feed(b"".join(pieces))
    assert len(list(iter(reader.next, None))) == 3
    assert dom0.connection.output_size == dom0.connection.outstanding == 0


def test_control(dom0: Peer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    commands = [line.split(b"\t")[0] for line in dom0.ok(MsgType.XS_CONTROL, "help")[:-1].splitlines()]
    assert commands == [b"check", b"log", b"memreport", b"print", b"quota", b"quota-soft", b"help"]
    assert dom0.ok(MsgType.XS_CONTROL, "check") == OK
    assert dom0.ok(MsgType.XS_CONTROL, "print", "to the log") == OK
    assert dom0.ok(MsgType.XS_CONTROL, "memreport") == OK
    assert dom0.ok(MsgType.XS_CONTROL, "log", "on") == OK
    dom0.read("/tool")
    assert dom0.ok(MsgType.XS_CONTROL, "log", "off") == OK
    dom0.read("/tool/xenstored")
    assert "to the log" in caplog.text
    assert "b'/tool\\x00'" in caplog.text
    assert "b'/tool/xenstored\\x00'" not in caplog.text
    for arguments in (
        ["nonsense"],
        ["log"],
        ["log", "maybe"],
        ["check", "x"],
        ["print"],
        ["quota", "set", "nodes"],
        [],
    ):
        assert dom0.ask(MsgType.XS_CONTROL, *arguments) == error(Errno.EINVAL)


def test_control_shows_and_sets_quotas(dom0: Peer, guest: Peer, store: Xenstore) -> None:
    assert b"\nnodes            :     1000 Nodes per domain\n" in dom0.ok(MsgType.XS_CONTROL, "quota")
    assert dom0.ok(MsgType.XS_CONTROL, "quota", "set", "nodes", "3") == OK
    assert dom0.ok(MsgType.XS_CONTROL, "quota-soft", "set", "memory", "1000") == OK
    assert (store.quotas.nodes, store.soft_quotas.memory) == (3, 1000)
    guest.write("data/x", b"")
    guest.watch("a", "t")
    usage = dom0.ok(MsgType.XS_CONTROL, "quota", "5").decode().splitlines()
    assert usage[:3] == ["Domain 5:", "nodes           :        2", "watches         :        1"]
    assert dom0.ask(MsgType.XS_CONTROL, "quota", "77") == error(Errno.ENOENT)
    assert dom0.ask(MsgType.XS_CONTROL, "quota", "set", "bits", "3") == error(Errno.EINVAL)


def test_check_finds_what_is_wrong(dom0: Peer, store: Xenstore) -> None:
    store.write("/a/b", "")
    del store.tree.nodes["/a/b"]
    assert b"/a/b is listed but absent" in dom0.ok(MsgType.XS_CONTROL, "check")


KINDS = st.one_of(st.sampled_from(list(MsgType)), st.integers(0, 0xFFFFFFFF))
WORDS = st.sampled_from(
    [b"/", b"/tool", b"/s/a", b"data/x", b"@releaseDomain", b"t", b"T", b"5", b"n5", b"b6", b"check", b""]
)
PAYLOADS = st.one_of(
    st.binary(max_size=40), st.lists(WORDS, max_size=4).map(lambda words: b"".join(w + b"\0" for w in words))
)
REQUESTS = st.lists(st.tuples(st.sampled_from([0, 5, 6]), KINDS, st.integers(0, 3), PAYLOADS), max_size=30)


@given(REQUESTS)
def test_any_request_gets_one_reply_and_leaves_the_tree_whole(requests: list[tuple[int, int, int, bytes]]) -> None:
    store = Xenstore(quotas=Quotas(nodes=6, node_size=150, watches=2, transactions=1))
    store.mkdir("/s", ["b0"])
    peers = {domid: Peer(store, domid) for domid in (0, 5, 6)}
    for domid, kind, tx, payload in requests:
        connection = peers[domid].connection
        if connection.closed:
            continue
        connection.feed(encode(kind, 7, tx, payload))
        released = connection.closed
        replies = [message for message in peers[domid].messages() if message.type != MsgType.XS_WATCH_EVENT]
        assert released or [(reply.req_id, reply.tx_id) for reply in replies] == [(7, tx)]
        assert find_problems(store) == []


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_arbitrary_bytes_are_answered_or_end_the_connection(chunks: list[bytes]) -> None:
    connection = Xenstore().connect(5)
    for chunk in chunks:
        try:
            connection.feed(chunk)
        except ProtocolError:
            return
    assert connection.buffered <= sum(len(chunk) for chunk in chunks)
