"""TCP and UDP of PV guests, to the host by user networking and to each other by a switch, against the host's loopback."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from load import DURATION_MS, PROGRAM, alternate, compile_load, in_guest, make_guest, on_host, row, serving

import xenpy

if TYPE_CHECKING:
    from pathlib import Path

    from report import Row

_PORT: Final = 5201
_GATEWAY: Final = "10.0.2.2"
_LOOPBACK: Final = "127.0.0.1"
_FIRST, _SECOND = "192.168.77.1", "192.168.77.2"
_SWITCH: Final = "bench-switch"
LOADS: Final = (
    ("TCP, from the guest", "MiB/s", "tcp-up", 128 << 10),
    ("TCP, to the guest", "MiB/s", "tcp-down", 128 << 10),
    ("TCP, round trip of 64 bytes", "us", "tcp-echo", 64),
    ("UDP, from the guest, 1400 bytes", "k/s", "udp-up", 1400),
    ("UDP, round trip of 64 bytes", "us", "udp-echo", 64),
)


def _address(guest: xenpy.Guest, address: str, mtu: int) -> None:
    guest.run(f"ip addr add {address}/24 dev eth0 && ip link set eth0 mtu {mtu} up")


def _rows(program: Path, runs: int, guest: xenpy.Guest, there: str, label: str) -> list[Row]:
    rows = []
    for name, unit, what, size in LOADS:
        tail = [str(_PORT), str(size), str(DURATION_MS)]
        ours, reference = alternate(
            runs,
            lambda what=what, tail=tail: in_guest(guest, [what, there, *tail]),
            lambda what=what, tail=tail: on_host(program, [what, _LOOPBACK, *tail]),
        )
        rows.append(row("net", f"{label}: {name}", unit, ours, reference, "host's loopback"))
    return rows


def measure(directory: Path, runs: int) -> list[Row]:
    """Return the rows of this measurement."""
    program = compile_load(directory)
    rows = []
    with serving(program, _PORT), xenpy.Host() as host:
        with make_guest(host, "net", program, "xen-netfront", vif=[""]) as guest:
            _address(guest, "10.0.2.15", 65520)
            rows += _rows(program, runs, guest, _GATEWAY, "host")
        with (
            make_guest(host, "first", program, "xen-netfront", vif=[f"bridge={_SWITCH}"]) as first,
            make_guest(host, "second", program, "xen-netfront", vif=[f"bridge={_SWITCH}"]) as second,
        ):
            for peer, address in ((first, _FIRST), (second, _SECOND)):
                _address(peer, address, 1500)
            second.run(f"/{PROGRAM} serve {_PORT} >/dev/null 2>&1 &")
            rows += _rows(program, runs, first, _SECOND, "guest")
    return rows
