"""A distribution's netfront on a tap and a real bridge, in a network namespace of the test's own: nothing of the host's changes."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.boot.web import lay_out, upload
from tests.conftest import images
from xenpy.guests import busybox
from xenpy.initramfs import make_initramfs

pytestmark = [pytest.mark.boot, pytest.mark.kvm]

KERNEL = "debian-6.12-cloud"
BRIDGE, HOST, GUEST = "xenpybr0", "10.99.0.1", "10.99.0.2"
PORT = 8080
SIZE = 4 << 20
MSS = 1460
TIMEOUT = 240
COMMAND = f"""
ip link set lo up
ip addr add {GUEST}/24 dev eth0
ip link set eth0 up
wget -q -O /tmp/file http://{HOST}:{PORT}/file && echo "digest $(sha256sum </tmp/file | cut -d ' ' -f 1)"
echo "packets $(cat /sys/class/net/eth0/statistics/rx_packets)"
{upload(f"{HOST}:{PORT}")}
dmesg | grep -E 'BUG:|cut here|Oops' | sed 's/^/complaint /'
"""
NETWORK = (
    f"ip link set lo up && ip link add {BRIDGE} type bridge && ip addr add {HOST}/24 dev {BRIDGE}"
    f" && ip link set {BRIDGE} up && ip tuntap add dev probe mode tap && ip link del probe"
)


def test_files_pass_both_ways_over_a_tap_on_a_bridge(tmp_path: Path) -> None:
    namespace = ["unshare", "--net", "sh", "-c"]
    if not all(shutil.which(program) for program in ("unshare", "ip")):
        pytest.skip("no programs unshare and ip")
    probe = subprocess.run([*namespace, NETWORK], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"no network namespace with a bridge and a tap: {probe.stderr.strip()}")
    digest = lay_out(tmp_path, SIZE)
    kernel = images(KERNEL)
    ramdisk = make_initramfs(command=COMMAND, images=kernel, modules=["xen-netfront"])
    config = tmp_path / "guest.cfg"
    config.write_text(
        f'name = "tap"\ntype = "pv"\nmemory = 256\nkernel = "{kernel.kernel}"\nramdisk = "{ramdisk}"\n'
        f"cmdline = \"console=hvc0 quiet panic=1\"\nvif = ['bridge={BRIDGE},mac=00:16:3e:01:02:04']\n"
    )
    guest = shlex.join([sys.executable, "-m", "xenpy", "run", str(config), "--timeout", str(TIMEOUT)])
    server = shlex.join([str(busybox()), "httpd", "-f", "-p", f"{HOST}:{PORT}", "-h", str(tmp_path)])
    script = f"{NETWORK} || exit 90\n{server} & server=$!\n{guest}\ncode=$?\nbridge link >&2\nkill $server\nexit $code"
    result = subprocess.run(
        [*namespace, script], stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=TIMEOUT + 30
    )
    console = [line.strip() for line in result.stdout.decode(errors="replace").splitlines()]
    assert result.returncode == 0, (console, result.stderr)
    assert f"digest {digest}" in console, (console, result.stderr)
    (packets,) = (int(line.split()[1]) for line in console if line.startswith("packets "))
    assert packets < SIZE // MSS, "large segments came whole"
    assert f"upload {digest}" in console, (console, result.stderr)
    assert not [line for line in console if line.startswith("complaint")]
    assert BRIDGE.encode() not in result.stderr, "the tap is gone with the guest"
    assert not (Path("/sys/class/net") / BRIDGE).exists()
