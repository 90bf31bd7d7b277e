"""Takes a PVH Linux down whole, forks it, writes it to disk, and has all of them go on.

Arguments: kernel, ramdisk, a directory to write to, number of vCPUs, whether KVM's Xen support is used, whether it has a disk. Writes
a verdict.
"""

from __future__ import annotations

import sys
from pathlib import Path

import xenpy

TIMEOUT_S = 400
SIZE = 4 << 20
LOOK = """
cat /tmp/mark /proc/uptime; nproc; sleep 1; cat /proc/uptime
dmesg | grep -E 'BUG:|WARNING: CPU|cut here|Oops|segfault|Call Trace|detected stalls'
"""
READ = "dd if=/dev/xvda bs=512 count=1 iflag=direct 2>/dev/null | tr -d '\\0'"


class Machine:
    """What all the guests have in common."""

    def __init__(self, *, vcpus: int, disk: bool) -> None:
        self.vcpus = vcpus
        self.disk = disk

    def change(self, guest: xenpy.Guest, mark: str) -> None:
        """Have a guest write something into its memory, and to its disk."""
        write = f"until [ -b /dev/xvda ]; do sleep 0.1; done; echo {mark} | dd of=/dev/xvda bs=512 conv=sync,fsync 2>/dev/null"
        guest.run(f"echo {mark} > /tmp/mark" + (f"; {write}" if self.disk else "")).check_returncode()

    def goes_on(self, guest: xenpy.Guest, mark: str) -> None:
        """Check that a guest is what it should be and that its time passes."""
        shown = guest.run(LOOK).stdout
        seen, before, processors, now, *complaints = shown.splitlines()
        assert (seen, processors) == (mark, str(self.vcpus)), (guest.name, shown)
        assert float(before.split()[0]) + 0.9 < float(now.split()[0]), (guest.name, shown)
        assert not complaints, (guest.name, shown)
        assert not self.disk or guest.run(READ).stdout == f"{mark}\n", guest.name


def run(kernel: str, ramdisk: str, directory: Path, machine: Machine, kvm_xen: int) -> None:
    """Do all of it, or raise what stands in the way."""
    disk = directory / "disk"
    disk.write_bytes(bytes(SIZE))
    with xenpy.Guest.from_kernel(
        kernel, type="pvh", name="whole", memory=256, vcpus=machine.vcpus, ramdisk=ramdisk, cmdline="console=hvc0 quiet",
        disk=[f"{disk},raw,xvda,rw"] if machine.disk else [], xenpy_kvm_xen=kvm_xen, timeout=TIMEOUT_S,
    ) as guest:  # fmt: skip
        machine.change(guest, "before")
        with guest.snapshot() as snap:
            with snap.fork(name="fork", clock="wall") as fork:
                machine.change(fork, "changed")
                machine.goes_on(fork, "changed")
            machine.goes_on(guest, "before")
            snap.save(directory / "saved")
    with xenpy.Snapshot.load(directory / "saved") as snap, snap.fork(name="loaded") as loaded:
        machine.goes_on(loaded, "before")


if __name__ == "__main__":
    _, kernel, ramdisk, directory, vcpus, kvm_xen, disk = sys.argv
    run(kernel, ramdisk, Path(directory), Machine(vcpus=int(vcpus), disk=disk == "1"), int(kvm_xen))
    sys.stdout.write("forks: all went on\n")
