"""A QEMU with Xen support: the machine's own where it is new enough, else the one of Debian's backports, unpacked into the cache."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from watch import BenchError

from xenpy.cache import cache_directory, locked, published
from xenpy.packages import unpack_deb

PROGRAM: Final = "qemu-system-x86_64"
WITH_XEN: Final = 8
"""The first version that emulates Xen with KVM."""
XEN_ACCEL: Final = "kvm,xen-version=0x40013,kernel-irqchip=split"
_PACKAGES: Final = "qemu-system-x86", "qemu-system-data", "seabios"
_FIRMWARE: Final = "usr/share/seabios", "usr/share/qemu"


@dataclass(frozen=True)
class Qemu:
    """One QEMU, and what to call it in a table."""

    command: tuple[str, ...]
    version: tuple[int, int]

    @property
    def has_xen(self) -> bool:
        """Tell whether it emulates Xen."""
        return self.version[0] >= WITH_XEN

    @property
    def accel(self) -> str:
        """Return the value of its `-accel`."""
        return XEN_ACCEL if self.has_xen else "kvm"

    @property
    def words(self) -> str:
        """Return version and kind, for people."""
        return f"QEMU {self.version[0]}.{self.version[1]}, {'Xen' if self.has_xen else 'plain KVM'}"


def find_qemu() -> Qemu:
    """Return the machine's QEMU, or that of the backports if it is too old for Xen and they can be had. Raises BenchError."""
    installed = shutil.which(PROGRAM)
    if installed is None:
        raise BenchError(f"{PROGRAM} is missing: apt install qemu-system-x86")
    qemu = Qemu((installed,), _version(installed))
    if qemu.has_xen:
        return qemu
    root = cache_directory("bench") / "qemu-backports"
    program = root / "usr/bin" / PROGRAM
    try:
        with locked(root):
            if not root.exists():
                _fetch(root)
        newer = _version(str(program))  # which shows, too, that the libraries here are new enough
    except (OSError, subprocess.CalledProcessError, StopIteration) as error:
        sys.stderr.write(f"bench: no QEMU with Xen from Debian's backports: {error!r}\n")
        return qemu
    firmware = [word for place in _FIRMWARE for word in ("-L", str(root / place))]
    return Qemu((str(program), *firmware), newer)


def _version(program: str) -> tuple[int, int]:
    text = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"version (\d+)\.(\d+)", text)
    if found is None:
        raise BenchError(f"{program} does not tell its version: {text}")
    return int(found[1]), int(found[2])


def _fetch(target: Path) -> None:
    """Unpack the backports' packages; what libraries they need are those of the QEMU that is installed."""
    form = "$(RELEASE) $(REPO_URI)"
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", form, "Identifier: Packages"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    release, uri = next(line.split() for line in listed.splitlines() if line.split()[0].isalpha())
    suite = f"{release}-backports"
    with tempfile.TemporaryDirectory(prefix="xenpy-bench-apt.") as name, published(target) as made:
        scratch = Path(name)
        (scratch / "lists" / "partial").mkdir(parents=True)
        sources = scratch / "sources.list"
        sources.write_text(f"deb {uri} {suite} main\n")
        places = {
            "APT::Sandbox::User": "root",
            "Dir::Etc::SourceList": str(sources),
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State": str(scratch),
            "Dir::Cache": str(scratch),
        }
        apt = ["apt-get", "-q", *(word for key, value in places.items() for word in ("-o", f"{key}={value}"))]
        for arguments in (["update"], ["download", *_PACKAGES]):
            subprocess.run([*apt, *arguments], cwd=scratch, capture_output=True, check=True)
        for package in scratch.glob("*.deb"):
            unpack_deb(package, made, lambda path: path.startswith(("usr/bin/qemu-system-x86_64", *_FIRMWARE)))
