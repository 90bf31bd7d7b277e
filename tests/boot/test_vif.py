"""A distribution's netfront over user networking: an address by DHCP, then a file from a server on the host's own loopback."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import sys
from typing import TYPE_CHECKING

import pytest

from tests.conftest import images
from xenpy.guests import busybox
from xenpy.initramfs import make_initramfs

if TYPE_CHECKING:
    from pathlib import Path

    from xenpy.emulated import EmulatedHost

pytestmark = [pytest.mark.boot, pytest.mark.emulated]

KERNEL = "debian-6.12-cloud"
PORT = 8080
BOOT_TIMEOUT = 120
LEASE = b"""#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add "$ip/$mask" dev "$interface"
ip link set "$interface" mtu "${mtu:-1500}"
ip route add default via "$router"
echo "lease $ip/$mask via $router mtu $mtu"
"""
FETCH = f"""
echo "address $(cat /sys/class/net/eth0/address)"
ip link set eth0 up
udhcpc -i eth0 -n -q -f -s /etc/lease
wget -q -O /tmp/file http://10.0.2.2:{PORT}/file && echo "sum $(sha256sum </tmp/file | cut -d ' ' -f 1)"
dmesg | grep -E 'BUG:|cut here|Oops' | sed 's/^/complaint /'
"""


def test_fetches_a_file_from_the_hosts_loopback(emulated_host: EmulatedHost, tmp_path: Path) -> None:
    if shutil.which("passt") is None:
        pytest.skip("passt is not installed")
    content = os.urandom(4 << 20)
    (tmp_path / "file").write_bytes(content)
    kernel = images(KERNEL)
    ramdisk = make_initramfs(command=FETCH, images=kernel, modules=["xen-netfront"], files={"etc/lease": LEASE})
    config = tmp_path / "guest.cfg"
    config.write_text(
        f'name = "net"\ntype = "pvh"\nmemory = 256\nkernel = "{kernel.kernel}"\nramdisk = "{ramdisk}"\n'
        "cmdline = \"console=hvc0 quiet panic=1\"\nvif = ['mac=00:16:3e:01:02:03']\n"
    )
    server = shlex.join([str(busybox()), "httpd", "-p", f"127.0.0.1:{PORT}", "-h", str(tmp_path)])
    guest = shlex.join([sys.executable, "-m", "xenpy", "run", str(config), "--timeout", str(BOOT_TIMEOUT)])
    result = emulated_host.run(["sh", "-c", f"{server} && exec {guest}"], timeout=BOOT_TIMEOUT + 30)
    console = [line.strip() for line in result.stdout.decode(errors="replace").splitlines()]
    assert result.returncode == 0, (console, result.stderr)
    assert "address 00:16:3e:01:02:03" in console
    assert "lease 10.0.2.15/24 via 10.0.2.2 mtu 65520" in console
    assert f"sum {hashlib.sha256(content).hexdigest()}" in console, (console, result.stderr)
    assert not [line for line in console if line.startswith("complaint")]
