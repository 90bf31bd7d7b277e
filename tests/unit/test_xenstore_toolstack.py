"""The tree of a domain."""

from __future__ import annotations

import pytest
from xs_rig import OK, Peer, error

from xenpy.abi.xs_wire import MsgType
from xenpy.errors import Errno
from xenpy.pv.xenstore import Quotas, Xenstore
from xenpy.pv.xenstore.control import find_problems
from xenpy.pv.xenstore.toolstack import ConsoleParams, DomainParams, RingParams, introduce_domain, release_domain

HOME = "/local/domain/5"
UUID = "8d6a6a0a-0000-4000-8000-00000000cafe"


@pytest.fixture
def store() -> Xenstore:
    return Xenstore()


@pytest.fixture
def guest(store: Xenstore) -> Peer:
    peer = Peer(store)
    params = DomainParams(
        domid=5,
        name="guest",
        uuid=UUID,
        memory_kib=1 << 20,
        maxmem_kib=2 << 20,
        vcpus=1,
        maxvcpus=3,
        store=RingParams(0xFEFFC, 1),
        console=ConsoleParams(RingParams(0xFEFFF, 2), tty="/dev/pts/9"),
        platform={"acpi": 1},
        quotas=Quotas(watches=0),
    )
    peer.connection = store.connect(5)
    introduce_domain(store, params, peer.connection)
    return peer


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", b"guest"),
        ("domid", b"5"),
        ("vm", f"/vm/{UUID}".encode()),
        ("memory/target", b"1048576"),
        ("memory/static-max", b"2097152"),
        ("cpu/0/availability", b"online"),
        ("cpu/2/availability", b"offline"),
        ("store/port", b"1"),
        ("store/ring-ref", b"1044476"),
        ("console/port", b"2"),
        ("console/ring-ref", b"1044479"),
        ("console/tty", b"/dev/pts/9"),
        ("console/backend", b"/local/domain/0/backend/console/5/0"),
        ("control/platform-feature-xs_reset_watches", b"1"),
        ("control/shutdown", b""),
        ("platform/acpi", b"1"),
        (f"/vm/{UUID}/name", b"guest"),
        ("/local/domain/0/backend/console/5/0/frontend", f"{HOME}/console".encode()),
    ],
)
def test_a_guest_reads(path: str, value: bytes, guest: Peer) -> None:
    assert guest.read(path) == value


@pytest.mark.parametrize(
    "path", ["data/x", "control/shutdown", "control/sysrq", "error/x", "device/suspend/event-channel"]
)
def test_a_guest_writes(path: str, guest: Peer) -> None:
    guest.write(path, b"1")


@pytest.mark.parametrize(
    "path", ["name", "x", "device/vbd", "console/tty", "control/new", "memory/target", f"/vm/{UUID}/name", "store/port"]
)
def test_a_guest_does_not_write(path: str, guest: Peer) -> None:
    assert guest.ask(MsgType.XS_WRITE, path, raw=b"1") == error(Errno.EACCES)


def test_the_toolstack_s_own_part_is_hidden(guest: Peer) -> None:
    assert guest.ask(MsgType.XS_READ, "/libxl/5/type") == error(Errno.EACCES)


def test_a_domain_has_its_own_quotas(guest: Peer) -> None:
    for token in range(200):
        assert guest.ok(MsgType.XS_WATCH, "a", str(token)) == OK


def test_release_leaves_nothing(guest: Peer, store: Xenstore) -> None:
    store.write("/local/domain/0/backend/vbd/5/51712/state", "4")
    store.write("/local/domain/0/backend/vbd/6/51712/state", "4")
    release_domain(store, 5)
    paths = dict(store.walk())
    assert not [path for path in paths if "/5/" in f"{path}/" or UUID in path]
    assert "/local/domain/0/backend/vbd/6/51712/state" in paths
    assert find_problems(store) == []
    assert 5 not in store.domains
