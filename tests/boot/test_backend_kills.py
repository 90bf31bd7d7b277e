"""kill -9 of everything that serves a guest's disks and network, at random, under an unmodified kernel with load on all of it."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

import xenpy
from tests.conftest import images
from xenpy.devices.vbd.backend import VbdBackend
from xenpy.devices.vbd.isolated import Isolated as IsolatedDisk
from xenpy.devices.vbd.qemu import QemuImage
from xenpy.devices.vif.backend import Vif
from xenpy.devices.vif.isolated import Isolated as IsolatedNet
from xenpy.devices.vif.isolated import PasstOutlet
from xenpy.initramfs import make_initramfs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [
    pytest.mark.boot,
    pytest.mark.kvm,
    pytest.mark.skipif(not shutil.which("passt"), reason="passt is not installed"),
    pytest.mark.skipif(not shutil.which("qemu-nbd"), reason="qemu-nbd is not installed (qemu-utils)"),
]

KILLS = int(os.environ.get("XENPY_TEST_KILLS", "60"))
"""At least, all processes taken together."""
MIB = 1 << 20
SIZE = 8 * MIB
CHUNK = MIB // 2
TIMEOUT_S = 240.0
LONGEST_S = 0.2
FIRST, SECOND = 202 << 8, (202 << 8) + 16
LEASE = b"""#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add "$ip/$mask" dev "$interface"
ip route add default via "$router"
ip link set dev "$interface" mtu "$mtu"
"""
DISKS = f"""
while [ ! -e /tmp/stop ]; do
    for disk in a b; do
        dd if=/dev/xvd$disk of=/dev/xvd$disk bs=64k count={SIZE >> 16} seek={SIZE >> 16} iflag=direct oflag=direct 2>/dev/null || echo bad
        dd if=/dev/xvd$disk bs=64k skip={SIZE >> 16} count={SIZE >> 16} iflag=direct 2>/dev/null | md5sum
    done
done >/tmp/disks 2>&1
"""
FETCH = "timeout 10 wget -q -O - http://10.0.2.2:PORT/ | md5sum"


class Server:
    """Gives whoever asks a chunk of data, on this host's loopback."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                peer = self._listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        with peer, suppress(OSError):  # whose passt dies hangs up
            peer.recv(4096)
            peer.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(self._data) + self._data)
            peer.shutdown(socket.SHUT_WR)
            while peer.recv(4096):
                pass

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def _kept(device: object) -> int | None:
    """Return the process of an isolated disk or interface, if there is one at the moment."""
    assert isinstance(device, VbdBackend | Vif)
    serving = device.connection if isinstance(device, VbdBackend) else device.station
    if not isinstance(serving, IsolatedDisk | IsolatedNet) or serving.keeper is None:
        return None
    process = serving.keeper.process
    return process.pid if process is not None else None


def victims(guest: xenpy.Guest) -> dict[str, Callable[[], int | None]]:
    """Return what serves the guest, by name, each with what tells its process."""
    raw, image, vif = (guest.devices.find(kind, at) for kind, at in (("vbd", FIRST), ("vbd", SECOND), ("vif", 0)))
    assert isinstance(image, VbdBackend)
    assert isinstance(vif, Vif)
    qemu = image.backing
    assert isinstance(qemu, QemuImage)
    assert isinstance(vif.station, IsolatedNet)
    outlet = vif.station.outlet
    assert isinstance(outlet, PasstOutlet)

    def passt() -> int | None:
        process = outlet.passt.process
        return process.pid if process is not None and process.returncode is None else None

    return {"disk": lambda: _kept(raw), "qemu-nbd": lambda: qemu.pid, "net": lambda: _kept(vif), "passt": passt}


class Killer:
    """Kills one after the other of what serves a guest, until told to stop; `often` is how often each, against the others."""

    def __init__(self, guest: xenpy.Guest, often: dict[str, int]) -> None:
        self.kills: Counter[str] = Counter()
        self._victims = victims(guest)
        self._names = [name for name, count in often.items() for _ in range(count)]
        self._random = random.Random(KILLS)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._random.uniform(0, LONGEST_S)):
            name = self._random.choice(self._names)
            pid = self._victims[name]()
            if pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    self.kills[name] += 1

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def test_what_a_guest_copies_and_fetches_arrives_whatever_dies(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(SIZE)
    raw, qcow2, source = tmp_path / "disk.img", tmp_path / "disk.qcow2", tmp_path / "source"
    source.write_bytes(data + bytes(SIZE))
    raw.write_bytes(data + bytes(SIZE))
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(source), str(qcow2)], check=True, timeout=60)
    chunk = random.Random(2).randbytes(CHUNK)
    server = Server(chunk)
    kernel = images("debian-6.12-cloud")
    ramdisk = make_initramfs(
        images=kernel, modules=("xen-blkfront", "xen-netfront"),
        files={"etc/lease": LEASE, "etc/disks": DISKS.encode()},
    )  # fmt: skip
    fetch = FETCH.replace("PORT", str(server.port))
    with xenpy.Guest.from_kernel(
        kernel.kernel, type="pv", name="kills", memory=256, ramdisk=ramdisk, cmdline="console=hvc0 quiet",
        disk=[f"{raw},raw,xvda,rw", f"{qcow2},qcow2,xvdb,rw"], vif=[""], timeout=TIMEOUT_S,
    ) as guest:  # fmt: skip
        guest.run("chmod +x /etc/lease; ip link set eth0 up; udhcpc -i eth0 -n -q -f -s /etc/lease; sh /etc/disks &")
        assert hashlib.md5(chunk).hexdigest() in guest.run(fetch).stdout
        # passt takes its connections with it, so it dies seldom enough for some of them to come to their end.
        killer = Killer(guest, {"disk": 12, "qemu-nbd": 8, "net": 8, "passt": 1})
        fetched: Counter[bool] = Counter()
        deadline = time.monotonic() + TIMEOUT_S + KILLS
        while killer.kills.total() < KILLS or not fetched[True]:
            assert time.monotonic() < deadline, (killer.kills, fetched)
            done = guest.run(fetch)
            whole = hashlib.md5(chunk).hexdigest() in done.stdout
            # What TCP has delivered is never anything else: a file that is not whole is one whose connection broke.
            assert whole or "wget:" in done.stdout or "Terminated" in done.stdout, done.stdout
            fetched[whole] += 1
        killer.stop()
        last = guest.run(f"touch /tmp/stop; for i in 1 2 3; do {fetch}; done; ip -4 addr show eth0")
        assert last.stdout.count(hashlib.md5(chunk).hexdigest()) >= 1, last.stdout
        assert "10.0.2.15/24" in last.stdout
        guest.run("while pidof dd; do sleep 1; done; wait; sync", timeout=TIMEOUT_S)
        copies = guest.run("sleep 1; cat /tmp/disks").stdout
        assert guest.run("dmesg | grep -E 'I/O error|BUG:|Oops|hung_task|blocked for more'").stdout == ""
        assert guest.ending is None
    server.close()
    sums = [line.split()[0] for line in copies.splitlines()]
    assert set(sums) == {hashlib.md5(data).hexdigest()}, copies
    found = tmp_path / "found"
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(qcow2), str(found)], check=True, timeout=60)
    assert found.read_bytes() == raw.read_bytes() == data + data
    assert killer.kills.keys() == {"disk", "qemu-nbd", "net", "passt"} or len(killer.kills) * KILLS > KILLS
    sys.stdout.write(f"{dict(killer.kills)}: {len(sums)} copies of {SIZE >> 20} MiB, fetched {dict(fetched)}\n")
