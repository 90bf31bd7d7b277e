"""What a distribution on a disk can be used for; a program, so that it runs on /dev/kvm and in the emulated host alike.

usage: distribution.py NAME TYPE [MIB]: log in, DHCP, fetch a file, be reached on a forwarded port; with MIB write so much to a second disk,
reboot, read it. Without MIB the disk is the cache's own, and left alone.
"""

from __future__ import annotations

import hashlib
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import Mock

import xenpy
from xenpy.distributions import provide_distribution

TIMEOUT_S = 1800
FETCHED_SIZE = 3_000_000
GUEST_PORT = 4711
GREETING = "greetings from the guest"

PREPARE = {
    "alpine": "ip addr flush dev eth0; udhcpc -i eth0 -n -q -t 10",
    "debian": "until ip -4 -o addr show dev enX0 | grep -q inet; do sleep 1; done",
}
INTERFACE = {"alpine": "eth0", "debian": "enX0"}
WRITE = """
mke2fs -q -t ext4 /dev/xvdb && mount /dev/xvdb /mnt && dd if=/dev/urandom of=/mnt/file bs=1048576 count={mib} conv=fsync 2>/dev/null &&
umount /mnt && mount /dev/xvdb /mnt && sha256sum </mnt/file && umount /mnt
"""
READ = "mount /dev/xvdb /mnt && sha256sum </mnt/file"

started = time.monotonic()


def say(text: str) -> None:
    """Print a line, and how many seconds it took to get there."""
    print(f"{text} [{time.monotonic() - started:.1f} s]", flush=True)


def succeed(guest: xenpy.Guest, command: str) -> str:
    done = guest.run(command)
    if done.returncode:
        raise SystemExit(f"{command!r}: {done.returncode}: {done.stdout}")
    return done.stdout.strip()


def log_in(guest: xenpy.Guest) -> None:
    guest.console.expect("login: ")
    say("login")
    guest.console.sendline("root")
    source = succeed(guest, "grep ' / ' /proc/mounts | tail -n 1")
    say(f"root {source.split()[0]} {source.split()[2]}")


class Quiet(SimpleHTTPRequestHandler):
    log_message = Mock()


def use_network(guest: xenpy.Guest, name: str, host_port: int, directory: Path) -> None:
    succeed(guest, PREPARE[name])
    say(f"address {succeed(guest, f'ip -4 -o addr show dev {INTERFACE[name]}').split()[3]}")
    content = random.Random(1).randbytes(FETCHED_SIZE)
    (directory / "file").write_bytes(content)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(directory))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://10.0.2.2:{server.server_address[1]}/file"
        found = succeed(guest, f"wget -q -O - {url} | sha256sum").split()[0]
        server.shutdown()
    say(f"fetched {found == hashlib.sha256(content).hexdigest()}")
    succeed(guest, f"(echo {GREETING} | nc -l -p {GUEST_PORT} >/dev/null 2>&1 &)")
    say(f"reached {ask(host_port) == GREETING}")


def ask(host_port: int) -> str:
    """Return what the guest says to who connects; passt accepts on its behalf, and hangs up while nobody listens there."""
    end = time.monotonic() + TIMEOUT_S
    while time.monotonic() < end:
        with socket.create_connection(("127.0.0.1", host_port), timeout=TIMEOUT_S) as client:
            client.shutdown(socket.SHUT_WR)
            with client.makefile("rb") as stream:
                try:
                    if said := stream.read():
                        return said.decode().strip()
                except ConnectionResetError:
                    pass
        time.sleep(1)
    return ""


def disk(image: Path, image_format: str, vdev: str) -> str:
    return f"format={image_format},vdev={vdev},access=rw,target={image}"


def main(name: str, guest_type: str, mib: int) -> None:
    distribution = provide_distribution(name)
    with socket.create_server(("127.0.0.1", 0)) as free:
        host_port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        root, config = distribution.disk, directory / "guest.cfg"
        disks = []
        if mib:
            root, data = directory / "root", directory / "data"
            subprocess.run(["cp", "--sparse=always", str(distribution.disk), str(root)], check=True)
            with data.open("wb") as stream:
                stream.truncate((mib + mib // 8 + 64) << 20)
            disks = [disk(data, "raw", "xvdb")]
        config.write_text(distribution.config(guest_type))
        make = partial(
            xenpy.Guest.from_cfg, config, timeout=TIMEOUT_S, disk=[disk(root, distribution.format, "xvda"), *disks],
            vif=[f"hostfwd=tcp:127.0.0.1:{host_port}-:{GUEST_PORT}"],
        )  # fmt: skip
        if mib:
            with make() as guest:
                log_in(guest)
                written = succeed(guest, WRITE.format(mib=mib)).split()[0]
                say(f"written {mib} MiB")
                guest.console.sendline("reboot")
                say(f"ended {guest.wait().kind.name}")
        before = root.stat().st_mtime_ns
        with make(snapshot=True) as guest:
            log_in(guest)
            if mib:
                say(f"read {succeed(guest, READ).split()[0] == written}")
            use_network(guest, name, host_port, directory)
            guest.console.sendline("poweroff")
            say(f"ended {guest.wait().kind.name}")
        say(f"left alone {root.stat().st_mtime_ns == before}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if sys.argv[3:] else 0)
