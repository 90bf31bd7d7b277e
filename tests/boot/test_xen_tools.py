"""Xen's own tools in a PV guest, through /dev/xen/xenbus: its test of xenstore, the clients, xen-detect."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import xenpy
from tests.conftest import images
from tests.xen_tools import LIBRARIES, unpacked
from xenpy.initramfs import make_initramfs

pytestmark = [pytest.mark.boot, pytest.mark.kvm]

KERNEL = "debian-6.12-cloud"
TIMEOUT = 240
CLIENTS = ("read", "write", "list", "ls", "rm", "exists", "watch")
RANDOM_SECONDS = 5


def libraries(root: Path, programs: list[Path]) -> dict[str, Path]:
    """Return where a guest needs the libraries of programs, and this machine's files."""
    found = {}
    for program in programs:
        environment = {"LD_LIBRARY_PATH": str(root / LIBRARIES)}
        told = subprocess.run(["ldd", program], env=environment, capture_output=True, text=True, check=True).stdout
        for library in re.findall(r"(/\S+) \(0x", told):
            path = Path(library)
            found[str(path) if path.name.startswith("ld-linux") else f"lib/{path.name}"] = path
    return found


@pytest.fixture(scope="module")
def linux() -> xenpy.Guest:
    root = unpacked()
    multi_call, detect = root / "usr/bin/xenstore", next(root.glob("usr/**/xen-detect"))
    test = root / "usr/lib/xen-4.17/bin/test-xenstore"
    files = {f"bin/{path.name}": path for path in (multi_call, detect, test)}
    files |= libraries(root, list(files.values()))
    files |= {f"bin/xenstore-{name}": f'#!/bin/sh\nexec xenstore {name} "$@"\n'.encode() for name in CLIENTS}
    guest = xenpy.Guest.from_kernel(
        images(KERNEL).kernel, type="pv", memory=256, ramdisk=make_initramfs(files=files), timeout=TIMEOUT,
        cmdline="console=hvc0 quiet",
    )  # fmt: skip
    with guest:
        guest.run("export LD_LIBRARY_PATH=/lib; ls -l /dev/xen/xenbus").check_returncode()
        yield guest


def succeed(guest: xenpy.Guest, command: str) -> str:
    done = guest.run(f"export LD_LIBRARY_PATH=/lib; {command}")
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("options", ["-i 2", f"-r {RANDOM_SECONDS}"])
def test_xens_test_of_xenstore(linux: xenpy.Guest, options: str) -> None:
    """Run each of its tests, and random ones; it works below `xenstore-test`, which a toolstack must give to a guest, and removes it."""
    linux.xenstore.mkdir("xenstore-test", [f"n{linux.domid}"])
    tests = succeed(linux, "test-xenstore -l").splitlines()
    assert len(tests) > 10
    said = succeed(linux, f"test-xenstore {options}")
    assert "failed" not in said
    if options.startswith("-i"):
        assert said.count(": avg: ") == len(tests), said


def test_clients(linux: xenpy.Guest) -> None:
    assert succeed(linux, "xenstore-read name") == f"{linux.name}\n"
    store = linux.xenstore
    succeed(linux, "xenstore-write data/a 1 data/a/b 'two words'")
    assert store.read("data/a/b") == "two words"
    assert succeed(linux, "xenstore-ls data") == 'a = "1"\n b = "two words"\n'
    assert succeed(linux, "xenstore-list data/a; xenstore-rm data/a; xenstore-list data") == "b\n"
    assert linux.run("LD_LIBRARY_PATH=/lib xenstore-exists data/a").returncode == 1
    assert linux.run("LD_LIBRARY_PATH=/lib xenstore-write name other").returncode == 1
    assert store.read("name") == linux.name
    succeed(
        linux,
        "(xenstore-watch -n 3 data/w >/tmp/seen; echo >/tmp/done) >/dev/null 2>&1 & until [ -s /tmp/seen ]; do sleep 1; done",
    )
    store.write("data/w", "1")
    store.write("data/w/x", "2")
    assert succeed(linux, "until [ -e /tmp/done ]; do sleep 1; done; cat /tmp/seen").splitlines()[-1] == "data/w/x"


def test_xen_detect_knows_a_pv_guest(linux: xenpy.Guest) -> None:
    assert "Running in PV context on Xen V4." in linux.run("xen-detect").stdout
