"""A distribution's netfront with two queues over user networking: DHCP, files from and to the host's own loopback."""

from __future__ import annotations

import shlex
import shutil
import sys
from typing import TYPE_CHECKING

import pytest

from tests.boot.web import lay_out, upload
from tests.conftest import images
from xenpy.guests import busybox
from xenpy.initramfs import make_initramfs

if TYPE_CHECKING:
    from pathlib import Path

    from xenpy.emulated import EmulatedHost

pytestmark = [pytest.mark.boot, pytest.mark.emulated]

KERNEL = "debian-6.12-cloud"
PORT = 8080
SIZE = 2 << 20
MSS = 1460
BOOT_TIMEOUT = 240
LEASE = b"""#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add "$ip/$mask" dev "$interface"
ip route add default via "$router"
echo "lease $ip/$mask via $router mtu $mtu"
"""
FETCH = f"""
fetch() {{
    wget -q -O /tmp/file http://10.0.2.2:{PORT}/file && echo "$1 $(sha256sum </tmp/file | cut -d ' ' -f 1)"
}}
echo "address $(cat /sys/class/net/eth0/address)"
echo "queues $(ls /sys/class/net/eth0/queues | xargs)"
ip link set eth0 up
udhcpc -i eth0 -n -q -f -s /etc/lease
fetch small
echo "packets $(cat /sys/class/net/eth0/statistics/rx_packets)"
ip link set eth0 mtu 65520
fetch large
{upload(f"10.0.2.2:{PORT}")}
dmesg | grep -E 'BUG:|cut here|Oops' | sed 's/^/complaint /'
"""


def test_fetches_and_sends_files_over_user_networking(emulated_host: EmulatedHost, tmp_path: Path) -> None:
    if shutil.which("passt") is None:
        pytest.skip("passt is not installed")
    digest = lay_out(tmp_path, SIZE)
    kernel = images(KERNEL)
    ramdisk = make_initramfs(command=FETCH, images=kernel, modules=["xen-netfront"], files={"etc/lease": LEASE})
    config = tmp_path / "guest.cfg"
    config.write_text(
        f'name = "net"\ntype = "pvh"\nmemory = 256\nkernel = "{kernel.kernel}"\nramdisk = "{ramdisk}"\n'
        "cmdline = \"console=hvc0 quiet panic=1\"\nvif = ['mac=00:16:3e:01:02:03']\n"
    )
    guest = shlex.join([sys.executable, "-m", "xenpy", "run", str(config), "--timeout", str(BOOT_TIMEOUT)])
    server = shlex.join([str(busybox()), "httpd", "-p", f"127.0.0.1:{PORT}", "-h", str(tmp_path)])
    result = emulated_host.run(["sh", "-c", f"{server} && exec {guest}"], timeout=BOOT_TIMEOUT + 30)
    console = [line.strip() for line in result.stdout.decode(errors="replace").splitlines()]
    assert result.returncode == 0, (console, result.stderr)
    assert "address 00:16:3e:01:02:03" in console
    assert "queues rx-0 tx-0" in console
    assert "lease 10.0.2.15/24 via 10.0.2.2 mtu 65520" in console
    assert f"small {digest}" in console, (console, result.stderr)
    (packets,) = (int(line.split()[1]) for line in console if line.startswith("packets "))
    assert packets < SIZE // MSS, "segments were joined on their way to the guest"
    assert f"large {digest}" in console, (console, result.stderr)
    assert f"upload {digest}" in console, (console, result.stderr)
    assert not [line for line in console if line.startswith("complaint")]
