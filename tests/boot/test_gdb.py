"""GDB itself at a Debian kernel, a PV guest, with the symbols that the kernel carries."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import xenpy
from tests.boot.test_api_linux import BOOT_TIMEOUT, KERNEL, ramdisk
from tests.conftest import images
from tests.gdb_client import TIMEOUT_S, Client
from xenpy.builder.kallsyms import Symbol, find_symbols
from xenpy.builder.kernel import load_kernel

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.boot,
    pytest.mark.kvm,
    pytest.mark.skipif(shutil.which("gdb") is None, reason="no gdb (Debian: gdb)"),
]
CMDLINE = "console=hvc0 quiet"
SOON_S = 30


@pytest.fixture(scope="module")
def symbols(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernel's symbols in a file for GDB."""
    target = tmp_path_factory.mktemp("symbols") / "kernel.elf"
    argv = [sys.executable, "-m", "xenpy", "symbols", str(images(KERNEL).kernel), "-o", str(target)]
    subprocess.run(argv, check=True, timeout=BOOT_TIMEOUT)
    return target


def gdb(symbols: Path, address: str, *commands: str) -> str:
    """Return what GDB says to commands, having connected."""
    argv = ["gdb", "-nx", "-batch", str(symbols), "-ex", f"target remote {address}"]
    for command in commands:
        argv += ["-ex", f"echo \\n> {command}\\n", "-ex", command]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=BOOT_TIMEOUT, check=False)
    return done.stdout + done.stderr


def said(output: str, command: str) -> str:
    """Return what GDB said to a command."""
    assert f"\n> {command}\n" in output, output
    return output.partition(f"\n> {command}\n")[2].partition("\n> ")[0]


@pytest.fixture
def linux() -> Iterator[xenpy.Guest]:
    guest = xenpy.Guest.from_kernel(
        images(KERNEL).kernel, type="pv", name="linux", memory=256, vcpus=2, ramdisk=ramdisk(), cmdline=CMDLINE,
        timeout=BOOT_TIMEOUT,
    )  # fmt: skip
    try:
        yield guest
    finally:
        guest.close()


def test_from_the_first_instruction_to_power_off(linux: xenpy.Guest, symbols: Path) -> None:
    address = linux.gdb()
    linux.start()
    output = gdb(
        symbols, address, "info threads", "break start_kernel", "continue", "backtrace", "x/i $pc", "stepi", "p/x $pc",
        "p/x *(unsigned char *)start_kernel", "delete", "hbreak kernel_init", "continue ",
        "info registers rip cs gs_base cr3", "monitor info", "detach",
    )  # fmt: skip
    assert "(vCPU 1, offline)" in said(output, "info threads")
    assert "in start_kernel ()" in said(output, "continue")
    assert re.findall(r"in (\w+) \(\)", said(output, "backtrace"))[:3] == [
        "start_kernel", "x86_64_start_reservations", "xen_start_kernel",
    ]  # fmt: skip
    assert "<start_kernel>" in said(output, "x/i $pc")
    start = next(symbol.gva for symbol in kernel_symbols() if symbol.name == "start_kernel")
    first = said(output, "x/i $pc")
    stepped = int(said(output, "p/x $pc").split("0x")[1], 16)
    assert start < stepped <= start + 15, first
    assert said(output, "p/x *(unsigned char *)start_kernel").strip().endswith(("0xf3", "0x55", "0xe8", "0x41", "0x48"))
    assert "in kernel_init ()" in said(output, "continue ")
    assert re.search(r"cs +0xe033", said(output, "info registers rip cs gs_base cr3"))
    assert "domain 1, linux: pv" in output
    assert linux.run("uname -r").stdout == f"{images(KERNEL).release}\n"
    assert linux.shutdown().kind is xenpy.End.POWEROFF


def kernel_symbols() -> list[Symbol]:
    with load_kernel(images(KERNEL).kernel) as kernel:
        return find_symbols(kernel)


def test_a_kernel_that_runs(linux: xenpy.Guest, symbols: Path) -> None:
    linux.start()
    linux.run("true")
    address = linux.gdb()
    linux.console.sendline("uname -m; sleep 2; uname -m; echo done$((6 * 7))")
    output = gdb(
        symbols, address, "break __x64_sys_newuname", "continue", "info threads", "stepi", "stepi", "stepi", "x/i $pc",
        "delete", "set can-use-hw-watchpoints 0", "watch *(long *)($rsp - 8)", "continue ", "delete ", "monitor evtchn", "detach",
    )  # fmt: skip
    assert "in __x64_sys_newuname ()" in said(output, "continue")
    assert said(output, "info threads").count("vCPU") == 2
    assert "__x64_sys_newuname" in said(output, "x/i $pc")
    assert "Watchpoint 2" in said(output, "watch *(long *)($rsp - 8)")
    assert re.search(r"Old value = -?\d+\nNew value = -?\d+\n", said(output, "continue ")), output
    assert re.search(r"virq vcpu=1 priority=\d virq=0", output)
    linux.console.expect("done42")
    assert "int3" not in linux.run("dmesg").stdout
    assert linux.run("uname -m").stdout == "x86_64\n"
    by_name = {symbol.name: symbol for symbol in kernel_symbols()}
    shown = linux.run("grep -E ' (vfs_read|start_kernel|do_exit|jiffies)$' /proc/kallsyms").stdout.splitlines()
    assert len(shown) >= 3
    for row in shown:
        gva, type_, name = row.split()
        assert (int(gva, 16), type_) == (by_name[name].gva, by_name[name].type)


def test_watchpoints(linux: xenpy.Guest, symbols: Path) -> None:
    """Of a word that the timer changes, and of one on the stack, with two vCPUs in the guest."""
    linux.start()
    linux.run("true")
    linux.console.sendline("while :; do :; done & while :; do :; done & echo busy$((6 * 7))")
    linux.console.expect("busy42")
    output = gdb(
        symbols, linux.gdb(), "watch *(long *)&jiffies", "continue", "p/x $old = *(long *)&jiffies", "continue ",
        "p *(long *)&jiffies > $old", "delete", "break __x64_sys_newuname", "detach",
    )  # fmt: skip
    assert "Hardware watchpoint 1" in said(output, "watch *(long *)&jiffies")
    for command in ("continue", "continue "):
        assert re.search(r"Old value = (\d+)\nNew value = (\d+)\n.*in \w+ \(\)", said(output, command)), output
    assert said(output, "p *(long *)&jiffies > $old").strip() == "$2 = 1"
    linux.wait_for(lambda: linux.domain.debugger is None, what="release")
    assert linux.run("kill %1 %2; echo well").stdout.endswith("well\n")
    assert not re.search("BUG:|Oops|detected stall", linux.run("dmesg").stdout)


def stop(client: Client) -> None:
    client.socket.sendall(b"\x03")
    assert client.reply().startswith("T02")


def stop_in_a_process(linux: xenpy.Guest, client: Client) -> int:
    """Let the guest go until it stops in user mode, and return where."""
    while (here := client.registers()["rip"]) >> 47:
        client.send("vCont;c")
        linux.wait_for(lambda: not linux.domain.stands, what="guest that goes on")
        stop(client)
    return here


def test_a_process(linux: xenpy.Guest) -> None:
    """Breakpoints and steps in user mode, by a debugger that goes without a word."""
    linux.start()
    linux.run("true")
    linux.console.sendline("while :; do :; done & while :; do :; done & echo busy$((6 * 7))")
    linux.console.expect("busy42")
    with Client(linux.gdb()) as client:
        for _ in range(3):
            here = stop_in_a_process(linux, client)
            places = set()
            for _ in range(4):
                assert client.ask("vCont;s:1") == "T05thread:1;"
                places.add(client.registers()["rip"])
            assert len(places) > 1
            assert client.ask(f"Z0,{here:x},1") == "OK"
            client.send("vCont;c")
            client.socket.settimeout(SOON_S)
            answer = None
            with suppress(TimeoutError):  # if it was the shell on its way to sleep, not one that goes in circles
                answer = client.reply()
            client.socket.settimeout(TIMEOUT_S)
            if answer is not None:
                break
            stop(client)
            assert client.ask(f"z0,{here:x},1") == "OK"
        assert answer is not None, "no breakpoint is ever reached"
        assert answer.endswith("swbreak:;")
        there = [thread for thread in (1, 2) if client.ask(f"Hg{thread}") == "OK" and client.registers()["rip"] == here]
        assert there
        assert client.ask(f"m{here:x},1") != "cc"
    linux.wait_for(lambda: linux.domain.debugger is None, what="release")
    assert linux.run("kill %1 %2; echo well").stdout.endswith("well\n")
    assert "trap" not in linux.run("dmesg").stdout


@pytest.mark.parametrize("name", ["debian-6.1-cloud", "debian-6.12-cloud", "alpine"])
def test_the_symbols_of_kernels(name: str) -> None:
    with load_kernel(images(name).kernel) as kernel:
        found = find_symbols(kernel)
    by_name = {symbol.name: symbol for symbol in found}
    assert len(found) > 80_000
    assert by_name["_text"].gva <= by_name["vfs_read"].gva < by_name["_etext"].gva < by_name["start_kernel"].gva
    assert by_name["vfs_read"].type == "T"
    assert [symbol.gva for symbol in found] == sorted(symbol.gva for symbol in found)


SUITE = """
import sys
import pytest
sys.path.insert(0, {root!r})
from tests.gdb_client import Client
import xenpy

SYMBOLS = {symbols!r}

def test_a_debugger():
    guest = xenpy.Guest.from_kernel(
        {kernel!r}, type="pvh", memory=256, vcpus=2, ramdisk={ramdisk!r}, cmdline="console=hvc0 quiet nokaslr", timeout=240
    )
    address = guest.gdb()
    with guest, Client(address) as gdb:
        gdb.socket.settimeout(240)
        for name in ("start_kernel", "kernel_init"):
            assert gdb.ask(f"Z0,{{SYMBOLS[name]:x}},1") == "OK"
            assert gdb.ask("vCont;c") == "T05thread:1;swbreak:;"
            assert gdb.registers()["rip"] == SYMBOLS[name]
            assert gdb.ask(f"z0,{{SYMBOLS[name]:x}},1") == "OK"
            assert gdb.ask("vCont;s:1") == "T05thread:1;"
            assert SYMBOLS[name] < gdb.registers()["rip"] <= SYMBOLS[name] + 15
        jiffies = SYMBOLS["jiffies"]
        assert gdb.ask(f"Z2,{{jiffies:x}},8") == "OK"
        seen = []
        while len(seen) < 3:
            stop = gdb.ask("vCont;c")
            assert stop.endswith(f"watch:{{jiffies:x}};"), stop
            seen.append(int.from_bytes(bytes.fromhex(gdb.ask(f"m{{jiffies:x}},8")), "little"))
        assert seen == sorted(set(seen))
        assert gdb.ask(f"z2,{{jiffies:x}},8") == "OK"
        assert gdb.ask("D") == "OK"
        assert guest.run("nproc").stdout == "2\\n"
"""


@pytest.mark.emulated
@pytest.mark.skipif(
    not os.environ.get("XENPY_TEST_SLOW"),
    reason="a debugger in the emulated host takes minutes: XENPY_TEST_SLOW=1 runs it",
)
def test_a_pvh_kernel_in_the_emulated_host(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    names = "start_kernel", "kernel_init", "jiffies"
    symbols = {symbol.name: symbol.gva for symbol in kernel_symbols() if symbol.name in names}
    suite = SUITE.format(
        root=str(root), symbols=symbols, kernel=str(images(KERNEL).kernel), ramdisk=str(ramdisk())
    )  # fmt: skip
    (tmp_path / "test_debugger.py").write_text(suite)
    argv = [sys.executable, "-m", "pytest", "--xen-host=emulated", "-pno:cacheprovider"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
