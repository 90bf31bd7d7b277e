"""Taps and bridges: what works with privilege, in a namespace where we have it, and what is said without."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from vif_rig import MAC

from xenpy.config.vif import VifConfig
from xenpy.devices.vif.frame import Frame, Gso
from xenpy.devices.vif.opening import open_link
from xenpy.devices.vif.tap import _described, _received
from xenpy.errors import HostError

CHILD = Path(__file__).with_name("vif_tap_child.py")
ROOT = CHILD.parent.parent.parent


def in_namespace(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run a command as root of a user and a network namespace of its own, or skip."""
    unshare = shutil.which("unshare")
    if unshare is None or not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        pytest.skip("unshare or /dev/net/tun is missing")
    if subprocess.run([unshare, "-rn", "true"], check=False, capture_output=True).returncode:
        pytest.skip("no namespaces for us here")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [unshare, "-rn", *argv]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, env=environment)


def test_a_tap_joins_the_hosts_bridge_and_the_kernel_does_what_is_left_to_it() -> None:
    result = in_namespace(sys.executable, str(CHILD))
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[:-1] == [
        "joined", "checksums", "large segment out", "large segment in", "waiting frames", "no bridge", "gone",
    ]  # fmt: skip


def test_without_privilege_the_error_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from vif_rig import VifServices

    def refuse(*_args: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("fcntl.ioctl", refuse)
    monkeypatch.setattr("os.open", lambda *_args: os.dup(0))
    services = VifServices()
    with pytest.raises(HostError, match=r"tap vif1\.0: Operation not permitted: that needs CAP_NET_ADMIN"):
        open_link(services, 1, VifConfig(0, MAC, bridge="lo"))
    services.close()


@pytest.mark.parametrize("size", [0, 9, 10, 23])
def test_frames_of_the_kernel_that_are_too_short_are_none(size: int) -> None:
    assert _received(memoryview(bytearray(size))) is None


def test_a_checksum_that_no_guest_could_be_told_of_is_filled_in() -> None:
    body = bytearray(14 + 40)
    body[12:14] = b"\x88\x88"
    frame = _received(
        memoryview(bytearray(b"\x01\0\0\0\0\0" + (14).to_bytes(2, "little") + (16).to_bytes(2, "little")) + body)
    )
    assert frame is not None
    assert not frame.csum_blank
    assert bytes(frame.head[30:32]) == b"\0\0"  # of all zeroes: all ones, complemented
    outside = bytearray(b"\x01\0\0\0\0\0" + (50).to_bytes(2, "little") + (16).to_bytes(2, "little")) + body
    assert _received(memoryview(outside)) is None


def test_frames_whose_headers_are_not_what_their_flags_say_are_not_sent() -> None:
    data = bytes(60)
    assert _described(Frame([data], 60))[1] is not None
    assert _described(Frame([data], 60, csum_blank=True))[1] is None
    assert _described(Frame([data], 60, csum_blank=True, gso=Gso(1000, True)))[1] is None
