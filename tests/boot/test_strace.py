"""Tracing an unmodified Linux: as a PV guest on this machine, as a PVH guest in the emulated host."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.conftest import images
from xenpy.initramfs import make_initramfs

if TYPE_CHECKING:
    from pathlib import Path

    from xenpy.emulated import EmulatedHost

pytestmark = pytest.mark.boot
TIMEOUT = 240
UNNAMED = re.compile(r"hypercall_\d+|_op\.\d+$|^type \d")


def configuration(directory: Path, guest_type: str, kernel: str = "debian-6.12-cloud") -> Path:
    config = directory / f"{kernel}.cfg"
    config.write_text(
        f'name = "{kernel}"\ntype = "{guest_type}"\nmemory = 256\ncmdline = "console=hvc0"\n'
        f'kernel = "{images(kernel).kernel}"\nramdisk = "{make_initramfs(command="uname -r", ending="poweroff")}"\n'
    )
    return config


def check(records: list[dict[str, object]]) -> None:
    """Check that every hypercall and message of a boot has a name, and that the boot's landmarks are there."""
    names = {str(record["name"]) for record in records}
    assert {name for name in names if UNNAMED.search(name)} == set()
    assert {
        "event_channel_op.init_control",
        "grant_table_op.query_size",
        "vcpu_op.set_singleshot_timer",
        "READ",
    } <= names
    assert {record["kind"] for record in records} >= {"hypercall", "xenstore", "event"}


@pytest.mark.kvm
def test_pv_linux(tmp_path: Path) -> None:
    out = tmp_path / "trace"
    files = ["--json", "-o", str(out), "--timeline", str(tmp_path / "timeline.svg")]
    argv = [
        sys.executable,
        "-m",
        "xenpy",
        "strace",
        str(configuration(tmp_path, "pv")),
        *files,
        "--timeout",
        str(TIMEOUT),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, (done.stdout[-2000:], done.stderr)
    records = [json.loads(line) for line in out.read_text().splitlines()]
    check(records)
    *_, shutdown = (record for record in records if record["name"] == "sched_op.shutdown")
    assert shutdown["args"] == {"reason": "poweroff"}
    names = {record["name"] for record in records}
    assert {"mmu_update", "mmuext_op", "iret", "multicall", "callback_op.register"} <= names
    assert {record["depth"] for record in records if "depth" in record} == {1}
    picture = (tmp_path / "timeline.svg").read_text()
    assert f"Linux {images('debian-6.12-cloud').release}" in picture
    assert "shutdown: poweroff" in picture


@pytest.mark.kvm
def test_abi_of_two_kernels(tmp_path: Path) -> None:
    configs = [str(configuration(tmp_path, "pv", kernel)) for kernel in ("debian-6.1-cloud", "debian-6.12-cloud")]
    argv = [sys.executable, "-m", "xenpy", "abi", *configs, "--timeout", str(TIMEOUT)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("ended: power-off") == 2
    assert re.search(r"feature dom0 supported +yes +-$", done.stdout, re.MULTILINE), "6.12's cloud flavour is no dom0"
    assert re.search(r"vm_assist\.enable type=pae_extended_cr3 +\d.*-$", done.stdout, re.MULTILINE)
    assert "mmu_update" not in done.stdout, "both update page tables"


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("rule", "fault", "reaction"),
    [
        ("hypercall=event_channel_op.init_control:error=ENOSYS", "error", "Using 2-level ABI"),
        ("xenstore=watch:error=EIO", "error", "Failed to set shutdown watcher"),
        ("event=virq:duplicate", "duplicate", "System halted"),
        ("event=store:delay=3ms:chance=0.5", "delay", "System halted"),
    ],
)
def test_linux_reacts_to_faults(tmp_path: Path, rule: str, fault: str, reaction: str) -> None:
    out = tmp_path / "trace"
    options = ["--fault", rule, "--json", "-e", "fault", "-o", str(out), "--timeout", str(TIMEOUT)]
    argv = [sys.executable, "-m", "xenpy", "strace", str(configuration(tmp_path, "pv")), *options]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, (done.stdout[-2000:], done.stderr)
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert {(record["kind"], record["name"], record["args"]["rule"]) for record in records} == {("fault", fault, rule)}
    assert reaction in done.stdout


@pytest.mark.emulated
def test_pvh_linux(emulated_host: EmulatedHost, tmp_path: Path) -> None:
    argv = [
        sys.executable,
        "-m",
        "xenpy",
        "strace",
        str(configuration(tmp_path, "pvh")),
        "--json",
        "--timeout",
        str(TIMEOUT),
    ]
    done = emulated_host.run(argv, timeout=TIMEOUT + 30)
    lines = done.stderr.decode(errors="replace").splitlines()
    assert done.returncode == 0, lines[-5:]
    check([json.loads(line) for line in lines if line.startswith("{")])
