#!/usr/bin/env python3
"""`make demo`: boots Debian's kernel, unmodified, as a Xen PVH guest, and leaves you at its shell; without a terminal it runs one command.

Where /dev/kvm is missing or interprets ring 0, the guest runs in the emulated host.
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

GUEST = "debian-6.12-cloud"
REPORT = "echo; uname -a; cat /sys/hypervisor/type /sys/hypervisor/version/major; uptime; echo"


def main() -> int:
    """Fetch, configure, say what is run, run it, and return its exit code."""
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    say("demo: guest kernel and busybox come from Debian's packages, fetched once")
    try:
        images = provide(GUEST)
        ramdisk = make_initramfs(command=REPORT, ending="shell" if interactive else "poweroff")
        directory = cache_directory("demo")
    except XenpyError as error:
        say(f"demo: {error}")
        return error.exit_code
    config = directory / "demo.cfg"
    config.write_text(
        f'name = "demo"\ntype = "pvh"\nmemory = 256\nvcpus = 1\nkernel = "{images.kernel}"\nramdisk = "{ramdisk}"\n'
        'cmdline = "console=hvc0"\n'
    )
    native = all(
        finding.status.value == "ok" for finding in examine() if finding.name in ("kvm", "kvm-features", "ring0")
    )
    command = [sys.executable, "-m", "xenpy", *([] if native else ["--host", "emulated"]), "run", str(config)]
    if not native:
        say("demo: this machine cannot run ring 0 natively, so QEMU emulates a KVM host: a minute's patience")
    say(f"demo: $ xenpy {shlex.join(command[3:])}")
    if interactive:
        say("demo: `poweroff -f` or Ctrl-] (three times in the emulated host) ends it")
    return subprocess.run(command, check=False, env={**os.environ}).returncode


def say(text: str) -> None:
    """Write a line to stderr: stdout is the guest's console."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
