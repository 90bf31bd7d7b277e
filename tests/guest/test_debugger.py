"""A debugger at small kernels: breakpoints, steps, memory, what is the guest's own, and debuggers that go."""

from __future__ import annotations

import socket
import subprocess
from contextlib import contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, Any

import build
import pytest

import xenpy
from tests.gdb_client import Client
from xenpy.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TIMEOUT = 90
KINDS = {
    "pv": (build.Kind(build.PVH.kernels, build.PV.lib), ("-DPV",)),
    "pvh": (build.PVH, ()),
}


@cache
def interprets_ring0() -> bool:
    with xenpy.Host() as host:
        return host.core.pv_traits().ring3_entry


class Kernel:
    def __init__(self, elf: Path, kind: str) -> None:
        self.elf = elf
        self.kind = kind
        listing = subprocess.run(["nm", elf], capture_output=True, text=True, check=True).stdout
        self.symbols = {line.split()[-1]: int(line.split()[0], 16) for line in listing.splitlines() if line[0] != " "}

    def guest(self, **settings: Any) -> xenpy.Guest:
        settings.setdefault("cmdline", "plain" if self.kind == "pvh" and interprets_ring0() else "")
        return xenpy.Guest.from_kernel(self.elf, type=self.kind, memory=32, timeout=TIMEOUT, **settings)


@pytest.fixture(params=KINDS)
def kernel(request: pytest.FixtureRequest, builder: build.Builder) -> Callable[[str], Kernel]:
    kind, options = KINDS[request.param]

    def make(name: str) -> Kernel:
        return Kernel(builder.build(name, 64, kind, options), request.param)

    return make


def check(guest: xenpy.Guest, test: str) -> None:
    ending = guest.wait()
    assert f"{test}: SUCCESS" in guest.emergency.text, guest.emergency.text
    assert ending.kind is xenpy.End.POWEROFF


@contextmanager
def debugged(kernel: Callable[[str], Kernel]) -> Iterator[tuple[xenpy.Guest, Client, int, int]]:
    """Give the kernel to debug before its first instruction, its debugger, and where its marker and its counter are."""
    debug = kernel("debug")
    guest = debug.guest()
    address = guest.gdb()
    with guest, Client(address) as gdb:
        yield guest, gdb, debug.symbols["marker"], debug.symbols["counter"]


def test_a_breakpoint_from_the_first_instruction_on(kernel: Callable[[str], Kernel]) -> None:
    with debugged(kernel) as (guest, gdb, marker, counter):
        assert gdb.ask("?") == "T05thread:1;"
        assert "ready" not in guest.emergency.text
        code = gdb.ask(f"m{marker:x},8")
        assert gdb.ask(f"Z0,{marker:x},1") == "OK"
        assert gdb.ask(f"m{marker:x},8") == code, "breakpoints are not seen"
        for number in (1, 2, 3, 10):
            assert gdb.ask("vCont;c") == "T05thread:1;swbreak:;"
            registers = gdb.registers()
            assert (registers["rip"], registers["rdi"]) == (marker, number)
            gdb.ask(f"z0,{marker:x},1")
            seen = [marker]
            while int.from_bytes(bytes.fromhex(gdb.ask(f"m{counter:x},8")), "little") < min(6, sum(range(number + 1))):
                assert gdb.ask("vCont;s:1") == "T05thread:1;"
                seen.append(gdb.registers()["rip"])
            assert len(set(seen)) == len(seen)
            assert gdb.ask(f"Z0,{marker:x},1") == "OK"
        gdb.ask(f"z0,{marker:x},1")
        assert gdb.ask("c") == "W00"
        check(guest, "debug")


def test_steps_within_a_range_are_one_for_the_debugger(kernel: Callable[[str], Kernel]) -> None:
    with debugged(kernel) as (guest, gdb, marker, counter):
        assert gdb.ask(f"Z0,{marker:x},1") == "OK"
        assert gdb.ask("vCont;c") == "T05thread:1;swbreak:;"
        assert gdb.ask(f"z0,{marker:x},1") == "OK"
        assert gdb.ask(f"vCont;r{marker:x},{marker + 64:x}:1") == "T05thread:1;"
        rip = gdb.registers()["rip"]
        assert not marker <= rip < marker + 64
        assert number_at(gdb, counter) == 1
        assert gdb.ask(f"vCont;r{rip:x},{rip:x}:1") == "T05thread:1;"
        assert gdb.registers()["rip"] != rip
        gdb.send(f"vCont;r0,{1 << 47:x}:1")
        gdb.socket.sendall(b"\x03")
        assert gdb.reply() in ("T02thread:1;", "W00")
        if guest.domain.ending is None:
            assert gdb.ask("D") == "OK"
        check(guest, "debug")


def test_registers_and_memory_are_written(kernel: Callable[[str], Kernel]) -> None:
    with debugged(kernel) as (guest, gdb, marker, counter):
        gdb.ask(f"Z1,{marker:x},1")
        assert gdb.ask("c").startswith("T05")
        assert gdb.ask("P5=" + (41).to_bytes(8, "little").hex()) == "OK"  # rdi
        assert gdb.ask(f"M{counter:x},8:" + ((1 << 64) - 40).to_bytes(8, "little").hex()) == "OK"
        values = gdb.registers()
        xmm = next(number for number, each in enumerate(values) if each == "xmm3")
        assert gdb.ask(f"P{xmm:x}=" + bytes(range(16)).hex()) == "OK"
        assert gdb.registers()["xmm3"] == int.from_bytes(bytes(range(16)), "little")
        assert gdb.registers() == {**values, "xmm3": int.from_bytes(bytes(range(16)), "little")}
        assert gdb.ask("m7fff00000000,4") == "E01", "there is no memory"
        assert gdb.ask("Z3,1000,4") == "", "what is read is not watched"
        assert gdb.ask("Z2,7fff00000000,4") == "E01", "there is no memory"
        assert gdb.ask("D") == "OK"
        check(guest, "debug")


def test_a_debugger_that_goes_lets_the_guest_go_on(kernel: Callable[[str], Kernel]) -> None:
    debug = kernel("debug")
    guest = debug.guest()
    address = guest.gdb()
    with guest:
        with Client(address) as gdb:
            gdb.ask(f"Z0,{debug.symbols['marker']:x},1")
            assert gdb.ask("c").startswith("T05")
        check(guest, "debug")


def test_a_debugger_that_goes_while_the_guest_runs_takes_its_breakpoints_along(kernel: Callable[[str], Kernel]) -> None:
    clock = kernel("clock")
    guest = clock.guest(cmdline="leap")
    address = guest.gdb()
    with guest:
        with Client(address) as gdb:
            gdb.ask(f"Z0,{clock.symbols['shutdown']:x},1")
            gdb.send("c")
            guest.emergency.expect("ready")
        guest.wait_for(lambda: guest.domain.debugger is None, what="release")
        guest.clock.jump(90)
        check(guest, "clock")


def test_a_guest_that_runs_is_stopped_and_nobody_else_may_have_it(kernel: Callable[[str], Kernel]) -> None:
    with kernel("clock").guest(cmdline="leap") as guest:
        guest.emergency.expect("ready")
        address = guest.gdb()
        assert guest.gdb() == address
        with Client(address) as gdb:
            assert gdb.ask("?").startswith("T02")
            with pytest.raises((AssertionError, OSError)):
                Client(address)
            gdb.send("vCont;c")
            gdb.socket.sendall(b"\x03")
            assert gdb.reply().startswith("T02")
            first = guest.clock.now()
            assert "vCPU 0: up" in gdb.monitor("info")
            assert gdb.monitor("xenstore name").startswith(f'/local/domain/{guest.domid}/name = "guest"')
            assert guest.clock.now() >= first
            assert gdb.ask("D") == "OK"
        guest.clock.jump(90)
        check(guest, "clock")


def test_kill(kernel: Callable[[str], Kernel]) -> None:
    guest = kernel("debug").guest()
    address = guest.gdb()
    with guest, Client(address) as gdb:
        gdb.send("k")
        assert guest.wait().kind is xenpy.End.DESTROYED
        assert gdb.reply() == ""


def connect(address: str) -> Client | None:
    """Return a debugger, or None while another has the guest."""
    try:
        return Client(address)
    except (AssertionError, OSError):
        return None


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"$" + b"x" * 100_000,
        bytes(range(256)) * 64,
        b"$c#63\x03" * 50,
        b"$m0,ffff#00" * 3000,
    ],
    ids=["http", "endless", "bytes", "restless", "deaf"],
)
def test_clients_that_do_not_know_how(kernel: Callable[[str], Kernel], data: bytes) -> None:
    with kernel("clock").guest(cmdline="leap") as guest:
        guest.emergency.expect("ready")
        host, _, port = guest.gdb().rpartition(":")
        with socket.create_connection((host, int(port)), timeout=TIMEOUT) as client, suppress(OSError, xenpy.Timeout):
            client.sendall(data)
            guest.wait_for(lambda: guest.domain.debugger is not None, timeout=1, what="debugger")
        with guest.wait_for(lambda: connect(f"{host}:{port}"), what="place for another debugger") as gdb:
            assert gdb.ask("?").startswith("T")
            assert gdb.ask("D") == "OK"
        guest.clock.jump(90)
        check(guest, "clock")


def test_a_port_that_is_taken(kernel: Callable[[str], Kernel]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, kernel("clock").guest(cmdline="leap") as guest:
        port = taken.getsockname()[1]
        with pytest.raises(HostError, match=rf"gdb: cannot listen at 127\.0\.0\.1:{port}: Address already in use"):
            guest.gdb(port)


def test_a_guest_with_breakpoints_in_it_is_not_saved(kernel: Callable[[str], Kernel]) -> None:
    debug = kernel("debug")
    guest = debug.guest()
    address = guest.gdb()
    with guest, Client(address) as gdb:
        assert gdb.ask(f"Z0,{debug.symbols['marker']:x},1") == "OK"
        with pytest.raises(HostError, match="while a debugger has it"):
            guest.snapshot()


def number_at(gdb: Client, gva: int) -> int:
    return int.from_bytes(bytes.fromhex(gdb.ask(f"m{gva:x},8")), "little")


def test_atomic_instructions_beside_what_is_watched(builder: build.Builder) -> None:
    shared = Kernel(builder.build("shared", 64, build.PVH, ()), "pvh")
    guest = shared.guest(vcpus=2)
    page = shared.symbols["page"]
    address = guest.gdb()
    with guest, Client(address) as gdb:
        assert gdb.ask(f"Z2,{page:x},8") == "OK"
        for value in (1, 2, 3):
            assert gdb.ask("vCont;c") == f"T05thread:1;watch:{page:x};"
            assert number_at(gdb, page) == value
        assert number_at(gdb, page + 8) == 2 * 600
        assert gdb.ask("D") == "OK"
        check(guest, "shared")


def test_a_watchpoint_stops_behind_each_store(kernel: Callable[[str], Kernel]) -> None:
    with debugged(kernel) as (guest, gdb, marker, counter):
        assert gdb.ask(f"Z2,{counter:x},8") == "OK"
        for value in (1, 3, 6):
            assert gdb.ask("vCont;c") == f"T05thread:1;watch:{counter:x};"
            assert number_at(gdb, counter) == value
            assert marker < gdb.registers()["rip"] < marker + 64
        assert gdb.ask(f"z2,{counter:x},8") == "OK"
        assert gdb.ask(f"Z0,{marker:x},1") == "OK"
        assert gdb.ask("vCont;c") == "T05thread:1;swbreak:;"
        assert gdb.ask(f"z0,{marker:x},1") == "OK"
        assert gdb.ask(f"Z2,{counter + 4:x},4") == "OK"
        stops = []
        while number_at(gdb, counter) == 6:
            stops.append(gdb.ask("vCont;s:1"))
        assert stops[-1] == f"T05thread:1;watch:{counter + 4:x};"
        assert set(stops[:-1]) <= {"T05thread:1;"}
        assert gdb.ask("D") == "OK"
        check(guest, "debug")
