"""Every kind of fault, and what an unmodified Linux makes of it: PV guests on this machine."""

from __future__ import annotations

import hashlib
import random
import re
import shutil
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

import xenpy
from tests.conftest import images
from xenpy.config.disk import DiskConfig
from xenpy.config.vif import VifConfig
from xenpy.devices.vbd.backend import VbdBackend
from xenpy.devices.vbd.connection import Threads
from xenpy.devices.vbd.isolated import Isolated as IsolatedDisk
from xenpy.devices.vif.backend import Vif
from xenpy.devices.vif.isolated import Isolated as IsolatedNet
from xenpy.devices.vif.usernet import network_of
from xenpy.initramfs import make_initramfs
from xenpy.testing.faults import inject
from xenpy.testing.trace import trace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.boot, pytest.mark.kvm]

KERNEL = "debian-6.12-cloud"
TIMEOUT = 240
XVDA, XVDB = 202 << 8, 202 << 8 | 16
READ = "dd if=/dev/xvda of=/dev/null bs=4k count=4 iflag=direct 2>&1"
FETCHED = random.Random(1).randbytes(2 << 20)
WRITE = "dd if=/dev/zero of=/dev/xvda bs=4k count=4 oflag=direct 2>&1"


@pytest.fixture(scope="module")
def host() -> Iterator[xenpy.Host]:
    with xenpy.Host() as host:
        yield host


def boot(host: xenpy.Host, name: str, *disks: str) -> xenpy.Guest:
    kernel = images(KERNEL)
    ramdisk = make_initramfs(images=kernel, modules=["xen-blkfront", "xen-netfront"])
    return xenpy.Guest.from_kernel(
        kernel.kernel, host=host, type="pv", name=name, memory=192, timeout=TIMEOUT, ramdisk=ramdisk,
        cmdline="console=hvc0 quiet", vif=["bridge=lab"], disk=disks,
    )  # fmt: skip


@pytest.fixture(scope="module")
def linux(host: xenpy.Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[xenpy.Guest]:
    image = tmp_path_factory.mktemp("faults") / "disk"
    image.write_bytes(bytes(8 << 20))
    with boot(host, "struck", f"{image},raw,xvda,rw") as guest:
        succeed(guest, "ip addr add 10.9.0.1/24 dev eth0 && ip link set eth0 up && [ -b /dev/xvda ]")
        yield guest


@pytest.fixture(scope="module")
def neighbour(host: xenpy.Host) -> Iterator[xenpy.Guest]:
    with boot(host, "neighbour") as guest:
        succeed(guest, "ip addr add 10.9.0.2/24 dev eth0 && ip link set eth0 up")
        yield guest


def succeed(guest: xenpy.Guest, command: str) -> str:
    done = guest.run(command)
    assert done.returncode == 0, done.stdout
    return done.stdout


def said(guest: xenpy.Guest, what: str) -> None:
    """Wait until the kernel's log has a line."""
    guest.wait_for(lambda: re.search(what, guest.run("dmesg").stdout), what=f"{what!r} in the log")


# -- disks: requests ----------------------------------------------------------------------------------------------------------


def test_a_request_fails(linux: xenpy.Guest) -> None:
    with trace(linux, "fault") as seen, inject(linux, "request=vbd/51712.write:error:when=2") as injected:
        done = linux.run(WRITE)
    assert done.returncode == 1
    assert "Input/output error" in done.stdout
    said(linux, "I/O error, dev xvda, sector 8 op 0x1:.WRITE.")
    assert [(fault.action, fault.number) for fault in injected.faults] == [("error", 2)]
    assert 'what="request vbd/51712.write"' in seen.text
    succeed(linux, WRITE)


def test_requests_are_late_twice_and_out_of_order(linux: xenpy.Guest) -> None:
    disk = linux.devices.find("vbd", XVDA)
    rules = [
        "request=vbd/51712.write:duplicate:chance=.3",
        "request=vbd/*.write:reorder:chance=.3",
        "request:delay=5ms",
    ]
    with inject(linux, *rules, seed=3) as injected:
        out = succeed(
            linux,
            "dd if=/dev/urandom of=/tmp/data bs=64k count=32 2>/dev/null; dd if=/tmp/data of=/dev/xvda bs=1M oflag=direct"
            " 2>/dev/null; md5sum </tmp/data; dd if=/dev/xvda bs=1M count=2 iflag=direct 2>/dev/null | md5sum",
        )
    first, second = out.split("-")[:2]
    assert first.strip() == second.strip()
    assert {fault.action for fault in injected.faults} == {"duplicate", "reorder", "delay"}
    assert isinstance(getattr(disk, "connection", None), Threads)


# -- events, grants, xenstore, hypercalls --------------------------------------------------------------------------------------


def test_a_lost_event_is_made_up_for_by_the_next(linux: xenpy.Guest) -> None:
    succeed(linux, "dmesg -c >/dev/null")
    with inject(linux, "event=store:drop:when=1") as injected:
        linux.sysrq("h")
        linux.wait_for(lambda: bool(injected.faults), what="fault")
        assert "sysrq: HELP" not in linux.run("dmesg").stdout, "it has not heard of it"
    linux.xenstore.write("memory/target", linux.xenstore.read("memory/target"))
    said(linux, "sysrq: HELP")


def test_a_late_event_wakes_late(linux: xenpy.Guest) -> None:
    with (
        trace(linux, "event=device/vbd/51712", "fault") as seen,
        inject(linux, "event=device/vbd/51712:delay=300ms:when=1"),
    ):
        succeed(linux, READ)
    text = seen.text
    times = [record.time_ns for record in seen.records]
    assert "fault delay" in text
    assert times[1] - times[0] >= 300_000_000, text


def test_a_grant_that_cannot_be_mapped_costs_the_device(linux: xenpy.Guest, tmp_path: Path) -> None:
    image = tmp_path / "other"
    image.write_bytes(bytes(1 << 20))
    with inject(linux, "grant=map:error=bad_gntref:when=1"):
        backend = linux.devices.plug("vbd", DiskConfig(target=str(image), vdev="xvdb", devid=XVDB))
        path = f"{backend.params.backend_path}/state"
        linux.wait_for(lambda: linux.xenstore.read(path) in ("5", "6"), what="end of the device")
    assert linux.run("[ -b /dev/xvdb ] && cat /sys/block/xvdb/size").stdout.strip() in ("", "0")
    linux.devices.unplug("vbd", XVDB, force=True)


def test_a_write_to_xenstore_fails(linux: xenpy.Guest) -> None:
    with inject(linux, "xenstore=write:error=EIO:when=1") as injected:
        linux.sysrq("h")
        linux.wait_for(lambda: bool(injected.faults), what="fault")
    said(linux, "Error -5 writing sysrq in control/sysrq")


def test_a_hypercall_fails(linux: xenpy.Guest) -> None:
    """No memory is to be had: the balloon stays blown up, and tries again."""
    before = linux.domain.memory.ram_pages
    linux.set_memory(176)
    linux.wait_for(lambda: linux.domain.memory.ram_pages < before - 8 * 256, what="smaller guest")
    with inject(linux, "hypercall=memory_op.populate_physmap:error=ENOMEM") as injected:
        linux.set_memory(192)
        linux.wait_for(lambda: len(injected.faults) > 1, what="second try")
        assert linux.domain.memory.ram_pages < before - 8 * 256
    linux.wait_for(lambda: linux.domain.memory.ram_pages >= before - 256, what="guest of its old size")


# -- devices and time ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def second_disk(linux: xenpy.Guest, tmp_path: Path) -> Iterator[None]:
    image = tmp_path / "second"
    image.write_bytes(bytes(4 << 20))
    linux.devices.plug("vbd", DiskConfig(target=str(image), vdev="xvdb", devid=XVDB))
    succeed(
        linux, "until [ -b /dev/xvdb ]; do sleep .1; done; dd if=/dev/zero of=/dev/xvdb bs=64k count=8 oflag=direct"
    )
    yield
    if linux.devices.find("vbd", XVDB) is not None:
        linux.devices.unplug("vbd", XVDB, force=True)
    succeed(linux, "while [ -b /dev/xvdb ]; do sleep .1; done")


def test_a_backend_that_is_killed_comes_back(linux: xenpy.Guest, second_disk: None) -> None:
    disk = linux.devices.find("vbd", XVDB)
    assert isinstance(disk, VbdBackend)
    assert isinstance(disk.connection, IsolatedDisk)
    keeper = disk.connection.keeper
    with inject(linux, "device=vbd/51728:kill", "device=vbd/51728:kill:at=100ms") as injected:
        for _ in range(3):
            succeed(linux, "dd if=/dev/xvdb of=/dev/null bs=4k count=64 iflag=direct")
        linux.wait_for(lambda: len(injected.faults) == 2 and keeper.deaths == 2, what="second death")
    succeed(linux, "dd if=/dev/xvdb of=/dev/null bs=4k iflag=direct")


def test_a_backend_that_closes_takes_the_disk_along(linux: xenpy.Guest, second_disk: None) -> None:
    with inject(linux, "device=vbd/51728:close"):
        succeed(linux, "until grep -q Clos /sys/bus/xen/devices/vbd-51728/state 2>/dev/null; do sleep .1; done")
    done = linux.run("dd if=/dev/xvdb of=/dev/null bs=4k count=1 iflag=direct 2>&1")
    assert done.returncode or "0+0 records in" in done.stdout, "it has no size, or is not there"


def test_a_device_that_is_pulled_out_is_gone(linux: xenpy.Guest, second_disk: None) -> None:
    with inject(linux, "device=vbd/51728:unplug"):
        succeed(linux, "while [ -b /dev/xvdb ]; do sleep .1; done")


def test_a_cable_is_pulled_and_put_back(linux: xenpy.Guest, neighbour: xenpy.Guest) -> None:
    succeed(linux, "until ping -c 1 -W 1 10.9.0.2 >/dev/null; do :; done")
    with inject(linux, "device=vif/0:down"):
        linux.wait_for(lambda: linux.run("ping -c 1 -W 1 10.9.0.2").returncode == 1, what="lost ping")
        assert "100% packet loss" in linux.run("ping -c 2 -W 1 10.9.0.2").stdout
        assert linux.xenstore.read(f"/local/domain/0/backend/vif/{linux.domid}/0/carrier") == "0"
    with inject(linux, "device=vif/0:up"):
        succeed(linux, "until ping -c 1 -W 1 10.9.0.2 >/dev/null; do :; done")


class Giver(BaseHTTPRequestHandler):
    """Gives whoever asks what there is to fetch."""

    def do_GET(self) -> None:
        self.send_response(HTTPStatus.OK)
        self.end_headers()
        self.wfile.write(FETCHED)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say nothing."""


@pytest.mark.skipif(not shutil.which("passt"), reason="passt is not installed")
def test_an_interface_whose_process_is_killed_stays(linux: xenpy.Guest) -> None:
    """Netfront hears nothing of it: no new handshake, no carrier lost, and connections go on."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Giver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        config = VifConfig(1, "00:16:3e:00:00:42")
        net = network_of(config)
        vif = linux.devices.plug("vif", config)
        assert isinstance(vif, Vif)
        succeed(linux, f"until ip link set eth1 up 2>/dev/null; do sleep .1; done; ip addr add {net.guest} dev eth1")
        fetch = f"wget -q -O - http://{net.gateway}:{server.server_port}/ | md5sum; cat /sys/class/net/eth1/ifindex"
        look = "cat /sys/bus/xen/devices/vif-1/state /sys/class/net/eth1/carrier_changes; dmesg | wc -l"
        expected = linux.run(fetch).stdout
        assert hashlib.md5(FETCHED).hexdigest() in expected
        before = linux.run(look).stdout
        assert isinstance(vif.station, IsolatedNet)
        keeper = vif.station.keeper
        assert keeper is not None
        with inject(linux, "device=vif/1:kill", "device=vif/1:kill:at=100ms", "device=vif/1:kill:at=300ms") as injected:
            while len(injected.faults) < 3 or keeper.deaths < 3:
                assert linux.run(fetch).stdout == expected
        assert linux.run(fetch).stdout == expected
        assert linux.run(look).stdout == before
        assert before.startswith("Connected\n")
        linux.devices.unplug("vif", 1)
        succeed(linux, "while [ -e /sys/class/net/eth1 ]; do sleep .1; done")
        server.shutdown()


def test_frames_are_lost_twice_and_late(linux: xenpy.Guest, neighbour: xenpy.Guest) -> None:
    ping = "ping -c 3 -W 5 10.9.0.2"
    succeed(linux, "until ping -c 1 -W 1 10.9.0.2 >/dev/null; do :; done")
    with inject(linux, "request=vif/0.rx:duplicate"):
        assert "duplicates" in succeed(linux, ping)
    with inject(linux, "request=vif/0.tx:delay=300ms") as injected:
        times = re.findall(r"time=([\d.]+)", succeed(linux, ping))
    assert injected.faults
    assert len(times) == 3
    assert all(float(time) >= 300 for time in times), "the guest's clock says so"
    with inject(linux, "request=vif/*:drop") as injected:
        assert linux.run("ping -c 1 -W 1 10.9.0.2").returncode == 1
    assert {fault.what for fault in injected.faults} <= {"request vif/0.tx", "request vif/0.rx"}
    succeed(linux, ping)


def test_time_leaps(linux: xenpy.Guest) -> None:
    def uptime() -> float:
        return float(linux.run("cut -d ' ' -f 1 /proc/uptime").stdout)

    before, date = uptime(), int(linux.run("date +%s").stdout)
    with inject(linux, "clock:jump=3600s") as injected:
        linux.wait_for(lambda: uptime() - before >= 3600, what="leap")
    assert [fault.what for fault in injected.faults] == ["clock"]
    assert int(linux.run("date +%s").stdout) - date >= 3600


# -- hostile sequences ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1])
def test_a_storm_of_faults_harms_nobody_else(linux: xenpy.Guest, neighbour: xenpy.Guest, seed: int) -> None:
    rules = [
        "request:error:chance=.1", "request:delay=2ms:chance=.1", "request:duplicate:chance=.1", "request:reorder:chance=.1",
        "event=device/vbd/51712:duplicate:chance=.1", "event=device/vbd/51712:delay=3ms:chance=.1",
        "event=virq:delay=1ms:chance=.05", "xenstore:error=EAGAIN:chance=.1", "hypercall=sched_op:delay=1ms:chance=.05",
        "hypercall=xen_version:error=EPERM:chance=.05",
    ]  # fmt: skip
    with inject(linux, *rules, seed=seed) as injected:
        for _ in range(3):
            linux.run(f"{WRITE}; {READ}; dd if=/dev/xvda of=/dev/null bs=256k count=8 iflag=direct")
            assert succeed(neighbour, "echo $((6 * 7))") == "42\n"
        assert injected.faults
    succeed(linux, f"{WRITE}; {READ}")
    assert linux.ending is None


def test_a_request_that_is_dropped_is_never_answered(linux: xenpy.Guest) -> None:
    """The last of all: the disk has one place less from now on."""
    with inject(linux, "request=vbd/51712.read:drop:when=1") as injected:
        succeed(
            linux, "rm -f /tmp/read; (dd if=/dev/xvda bs=512 count=1 iflag=direct; touch /tmp/read) >/dev/null 2>&1 &"
        )
        linux.wait_for(lambda: bool(injected.faults), what="fault")
    succeed(linux, READ)
    assert linux.run("[ -e /tmp/read ]").returncode == 1
