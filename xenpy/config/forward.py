"""Ports of the host's that lead into user networking: hostfwd= of a vif= entry, which is xenpy's own and spelt as QEMU's.

Ref: qemu(1), -netdev user,hostfwd=
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, Literal

from xenpy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from xenpy.config.specs import Spec

LOOPBACK: Final = "127.0.0.1"
_MAX_PORT: Final = 0xFFFF
_SPELLING: Final = re.compile(
    r"(?P<protocol>tcp|udp|):(?P<address>\[[^]]*\]|[^:]*):(?P<host>\d+)-(?P<guest_address>[^:]*):(?P<guest>\d+)",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Forward:
    """A port of the host's that leads to one of the guest's; `address` is the host's, on its loopback by default."""

    host_port: int
    guest_port: int
    protocol: Literal["tcp", "udp"] = "tcp"
    address: str = LOOPBACK

    def __post_init__(self) -> None:
        for port in (self.host_port, self.guest_port):
            if not 0 < port <= _MAX_PORT:
                raise ConfigError(f"forward: port {port} is not from 1 to {_MAX_PORT}")


def parse_forwards(spec: Spec, texts: Iterable[str]) -> tuple[Forward, ...]:
    """Parse the values of hostfwd=. Raises ConfigError."""
    forwards: dict[tuple[str, str, int], Forward] = {}
    for text in texts:
        forward = _parse(spec, text)
        key = (forward.protocol, forward.address, forward.host_port)
        if key in forwards:
            raise spec.fail(f"hostfwd={text}: {forward.address} port {forward.host_port} leads elsewhere already")
        forwards[key] = forward
    return tuple(forwards.values())


def _parse(spec: Spec, text: str) -> Forward:
    match = _SPELLING.fullmatch(text)
    if match is None:
        raise spec.fail(f"hostfwd={text} is not like tcp:127.0.0.1:2222-:22, protocol:address:port-:port")
    if match["guest_address"]:
        raise spec.fail(
            f"hostfwd={text}: ports lead to this interface's guest; leave its address out: -:{match['guest']}"
        )
    host_port, guest_port = int(match["host"]), int(match["guest"])
    for port in (host_port, guest_port):
        if not 0 < port <= _MAX_PORT:
            raise spec.fail(f"hostfwd={text}: port {port} is not from 1 to {_MAX_PORT}")
    address = match["address"].strip("[]") or LOOPBACK
    try:
        address = str(ip_address(address))
    except ValueError:
        raise spec.fail(f"hostfwd={text}: {address} is not an address of the host's, such as {LOOPBACK}") from None
    return Forward(host_port, guest_port, "udp" if match["protocol"] == "udp" else "tcp", address)
