"""What a MiB of a PV guest's network costs: processor time of each thread and process that has to do with it, and the guest's exits.

Processor time stays put when other programs compete, so there is nothing to compare it with but an earlier run's.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from load import PROGRAM, compile_load, in_guest, make_guest, serving
from report import Row
from watch import processor_time

import xenpy
from xenpy.devices.vif.backend import Vif
from xenpy.devices.vif.isolated import Isolated, PasstOutlet

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

_PORT: Final = 5201
_GATEWAY: Final = "10.0.2.2"
_FIRST, _SECOND = "192.168.77.1", "192.168.77.2"
_SWITCH: Final = "bench-switch"
_LARGE_MTU, _SMALL_MTU = 65520, 1500
_DURATION_MS: Final = 3000
_LOADS: Final = (("TCP, from the guest", "tcp-up", 128 << 10), ("TCP, to the guest", "tcp-down", 128 << 10))
_DATAGRAMS: Final = ("UDP, from the guest, 1400 bytes", "udp-up", 1400)
_MIB: Final = 1 << 20
_MS: Final = 1000


def _thread(name: str) -> Callable[[], float]:
    """Return what tells the processor time of a thread of ours."""
    thread = next(thread for thread in threading.enumerate() if thread.name == name)
    assert thread.ident is not None
    clock = time.pthread_getcpuclockid(thread.ident)
    return lambda: time.clock_gettime(clock)


def _measure(
    guest: xenpy.Guest, label: str, load: tuple[str, str, int], there: str, clocks: Mapping[str, Callable[[], float]]
) -> list[Row]:
    name, what, size = load
    vcpu = guest.domain.vcpus[0]
    before, exits = {part: clock() for part, clock in clocks.items()}, vcpu.exits
    result = in_guest(guest, [what, there, str(_PORT), str(size), str(_DURATION_MS)])
    mib = max(result.size, 1) / _MIB
    rows = [
        Row("net", f"{label}: {name}: {part}", "ms/MiB", (clock() - before[part]) * _MS / mib)
        for part, clock in clocks.items()
    ]
    return [*rows, Row("net", f"{label}: {name}: exits", "/MiB", (vcpu.exits - exits) / mib)]


def _address(guest: xenpy.Guest, address: str, mtu: int) -> None:
    guest.run(f"ip addr add {address}/24 dev eth0 && ip link set eth0 mtu {mtu} up").check_returncode()


def _to_host(host: xenpy.Host, program: Path, runs: int) -> list[Row]:
    with serving(program, _PORT), make_guest(host, "net", program, "xen-netfront", vif=[""]) as guest:
        _address(guest, "10.0.2.15", _LARGE_MTU)
        vif = guest.devices.find("vif", 0)
        assert isinstance(vif, Vif)
        assert isinstance(vif.station, Isolated)
        assert isinstance(vif.station.outlet, PasstOutlet)
        keeper, passt = vif.station.keeper, vif.station.outlet.passt.process
        assert keeper is not None
        assert keeper.process is not None
        assert passt is not None
        served, outside = keeper.process.pid, passt.pid
        clocks = {
            "the vCPU's thread": _thread("net/0"),
            "passing on events": _thread(f"vif {guest.domid}/0"),
            "the vif's process": lambda: processor_time(served),
            "passt": lambda: processor_time(outside),
        }
        return [
            row for load in (*_LOADS, _DATAGRAMS) for row in _median(
                [_measure(guest, "host", load, _GATEWAY, clocks) for _ in range(runs)]
            )
        ]  # fmt: skip


def _to_guest(host: xenpy.Host, program: Path, runs: int) -> list[Row]:
    with (
        make_guest(host, "first", program, "xen-netfront", vif=[f"bridge={_SWITCH}"]) as first,
        make_guest(host, "second", program, "xen-netfront", vif=[f"bridge={_SWITCH}"]) as second,
    ):
        for peer, address in ((first, _FIRST), (second, _SECOND)):
            _address(peer, address, _SMALL_MTU)
        second.run(f"/{PROGRAM} serve {_PORT} >/dev/null 2>&1 &")
        clocks = {
            "the sender's vCPU": _thread("first/0"),
            "the receiver's vCPU": _thread("second/0"),
            "the loop, with the switch": _thread("xenpy loop"),
        }
        return _median([_measure(first, "guest", _LOADS[0], _SECOND, clocks) for _ in range(runs)])


def _median(turns: list[list[Row]]) -> list[Row]:
    return [sorted(column, key=lambda row: row.value)[len(turns) // 2] for column in zip(*turns, strict=True)]


def measure(directory: Path, runs: int) -> list[Row]:
    """Return the rows of this measurement."""
    program = compile_load(directory)
    with xenpy.Host() as host:
        return [*_to_host(host, program, runs), *_to_guest(host, program, runs)]
