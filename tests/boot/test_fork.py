"""Snapshots and forks of a distribution's kernel, at work, as a PV guest on /dev/kvm of this machine."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import time
from typing import TYPE_CHECKING, cast

import pytest

import xenpy
from tests.boot.test_api_linux import BOOT_TIMEOUT, CMDLINE, KERNEL, ramdisk
from tests.conftest import images

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from xenpy.api.snapshot import Clock

pytestmark = [pytest.mark.boot, pytest.mark.kvm]
needs_time = pytest.mark.skipif(
    os.environ.get("XENPY_TEST_SLOW") != "1", reason="forks at random moments take minutes: XENPY_TEST_SLOW=1 runs them"
)

WORK = """
pause={pause}
(h=seed; n=0
 while :; do
     h=$(printf %s $h | sha256sum); h=${{h%% *}}; n=$((n + 1)); sleep $pause
     echo $n $h > /tmp/chain.new; mv /tmp/chain.new /tmp/chain
 done) >/dev/null 2>&1 &
(n=0; while sleep $pause; do n=$((n + 1)); echo $n > /tmp/sleeps.new; mv /tmp/sleeps.new /tmp/sleeps; done) >/dev/null 2>&1 &
(while sleep $pause; do
     dd if=/dev/urandom of=/tmp/random bs=64k count=4 2>/dev/null
     a=$(md5sum < /tmp/random); b=$(cat /tmp/random | cat | md5sum); [ "$a" = "$b" ] || echo "differs: $a $b" >> /tmp/bad
 done) >/dev/null 2>&1 &
until [ -e /tmp/chain ] && [ -e /tmp/sleeps ]; do sleep 0.1; done
"""
"""Processes that compute a chain of checksums, that sleep, and that move data through files and pipes, with pauses of so many seconds."""
LOOK = """
cat /tmp/chain /tmp/sleeps /proc/uptime; cat /tmp/bad 2>/dev/null
dmesg | grep -v RETBleed | grep -E 'BUG:|WARNING:|cut here|Oops|segfault|Call Trace|detected stalls' | head -5
"""
LINES = 3
PATIENCE_S = 240


class Chain:
    """What the guest's checksums must be."""

    def __init__(self) -> None:
        self._links = ["seed"]

    def look(self, guest: xenpy.Guest) -> list[float]:
        """Check what a guest has computed; return how far everything has got."""
        lines = guest.run(LOOK, timeout=PATIENCE_S).stdout.splitlines()
        assert len(lines) == LINES, lines
        count, found = lines[0].split()
        while len(self._links) <= int(count):
            self._links.append(hashlib.sha256(self._links[-1].encode()).hexdigest())
        assert found == self._links[int(count)], (guest.name, lines)
        return [float(line.split()[0]) for line in lines]


def linux(**settings: int) -> xenpy.Guest:
    kernel = images(KERNEL).kernel
    return xenpy.Guest.from_kernel(
        kernel,
        type="pv",
        name="linux",
        memory=128,
        ramdisk=ramdisk(),
        cmdline=CMDLINE,
        timeout=2 * BOOT_TIMEOUT,
        **settings,
    )


@pytest.fixture(scope="module")
def busy() -> Iterator[xenpy.Guest]:
    """A guest with two vCPUs and a lot to do, but not so much that four of them starve each other on two processors."""
    with linux(vcpus=2) as guest:
        guest.run(WORK.format(pause=0.5)).check_returncode()
        yield guest


def goes_on(chain: Chain, guest: xenpy.Guest) -> None:
    """Wait until everything in a guest has got further."""
    before = chain.look(guest)
    deadline = time.monotonic() + PATIENCE_S
    while not all(now > then for now, then in zip(chain.look(guest), before, strict=True)):
        assert time.monotonic() < deadline, f"{guest.name} stands still at {before}"


def test_forks_go_on_and_know_nothing_of_each_other(busy: xenpy.Guest) -> None:
    chain = Chain()
    with busy.snapshot() as snap:
        with snap.fork(name="one") as one, snap.fork(name="two") as two:
            one.run("echo one > /tmp/mark").check_returncode()
            assert two.run("ls /tmp/mark").returncode
            goes_on(chain, one)
            goes_on(chain, two)
            assert one.run("nproc").stdout == "2\n"
            with one.snapshot() as again, again.fork(name="grandchild") as grandchild:
                assert grandchild.run("cat /tmp/mark").stdout == "one\n"
                goes_on(chain, grandchild)
        goes_on(chain, busy)
        with snap.fork(name="late") as late:
            assert late.run("ls /tmp/mark").returncode
            goes_on(chain, late)


def test_time_goes_on_or_has_passed(busy: xenpy.Guest) -> None:
    def uptime(guest: xenpy.Guest) -> float:
        return float(guest.run("cat /proc/uptime").stdout.split()[0])

    up = uptime(busy)
    boot = busy.clock.now() - up  # not before the guest's own count of it began
    with busy.snapshot() as snap:
        before = busy.clock.now()
        busy.wait_for(lambda: busy.clock.now() > before + 3 or None, what="passing of three seconds")
        with snap.fork(name="later", clock="wall", paused=True) as later, snap.fork(name="same", paused=True) as same:
            assert later.clock.now() - same.clock.now() > 2
            assert same.clock.now() < busy.clock.now() - 2
            for fork in (later, same):
                resumed = fork.clock.now()
                fork.unpause()
                assert uptime(fork) > resumed - boot


def test_a_snapshot_is_refused_when_it_makes_no_sense(busy: xenpy.Guest) -> None:
    snap = busy.snapshot()
    with xenpy.Host() as host, snap.fork(host=host, name="first"):
        refused = pytest.raises(xenpy.HostError, match="domain 1 lives on this host")
        with refused:
            snap.fork(host=host)
    with pytest.raises(xenpy.ConfigError, match="clock='past' is neither"):
        snap.fork(clock=cast("Clock", "past"))
    snap.close()
    with pytest.raises(xenpy.ConfigError, match="is closed"):
        snap.fork()


@needs_time
@pytest.mark.parametrize("vcpus", [1, 2, 4])
def test_forks_at_random_moments(vcpus: int) -> None:
    chain, moments = Chain(), random.Random(vcpus)
    with linux(vcpus=vcpus) as guest:
        guest.run(WORK.format(pause=0.1)).check_returncode()
        for number in range(50):
            time.sleep(moments.random())
            with guest.snapshot() as snap, snap.fork(name=f"fork-{number}") as fork:
                goes_on(chain, fork)
        goes_on(chain, guest)


def test_commands_save_and_restore_a_domain(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}

    def command(*words: str, typed: str = "", until: str = "") -> str:
        """Run a command; one with a text to wait for is left then."""
        with subprocess.Popen(
            [sys.executable, "-m", "xenpy", *words], env=environment, text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as process:  # fmt: skip
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(typed)
            process.stdin.flush()
            output = ""
            while until and until not in output:
                output += process.stdout.readline()
            if until:
                process.kill()
            output += process.stdout.read()
        assert until or not process.returncode, output
        return output

    settings = ["type=pv", "name=kept", "memory=128", f"kernel={images(KERNEL).kernel}", f"ramdisk={ramdisk()}"]
    command("create", "/dev/null", *settings, 'cmdline="console=hvc0 quiet"')
    try:
        command("console", "kept", typed="x=remembered; echo is $((40 + 2))\n", until="is 42")
        command("save", "kept", str(saved))
        assert "kept" not in command("list")
        command("restore", "-p", str(saved))
        assert "--p---" in command("list", "kept")
        command("unpause", "kept")
        command("console", "kept", typed="echo was $x\n", until="was remembered")
    finally:
        command("destroy", "kept")
