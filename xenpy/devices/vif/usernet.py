"""How user networking is set up for one interface: addresses, the way out, and ports that lead in.

Every interface has a network of its own, the same on every host: the guest is 10.0.N.15, the host is reached at the
gateway's address, 10.0.N.2, where its own loopback answers too; N is 2 for the first interface.

Ref: passt(1)
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, ip_interface
from pathlib import Path
from typing import TYPE_CHECKING, Final

from xenpy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from xenpy.config.forward import Forward
    from xenpy.config.vif import VifConfig

_FIRST_NETWORK: Final = int(IPv4Address("10.0.2.0"))
_NETWORK_SIZE: Final = 256
_NETWORKS: Final = 250
_GUEST, _GATEWAY = 15, 2
_PREFIX: Final = 24
_LOCAL: Final = bytes.fromhex("5255")
"""Begins addresses of our own making; the gateway's goes on with its IPv4 address."""

_IPV4_ROUTES: Final = Path("/proc/net/route")
_IPV4_ANY: Final = "00000000"
_IPV6_ROUTES: Final = Path("/proc/net/ipv6_route")
_IPV6_ANY: Final = "0" * 32
_LOOPBACK: Final = "lo"


@dataclass(frozen=True, slots=True)
class UserNet:
    """The network of one interface."""

    guest: IPv4Interface
    gateway: IPv4Address
    guest6: IPv6Address | None = None

    @property
    def gateway_mac(self) -> str:
        """Return the address at which the gateway answers."""
        return (_LOCAL + self.gateway.packed).hex(":")

    def arguments(self, mtu: int | None, forwards: Iterable[Forward]) -> list[str]:
        """Return passt's options."""
        options = [
            *_outlet(),
            f"--address={self.guest.ip}",
            f"--netmask={self.guest.network.prefixlen}",
            f"--gateway={self.gateway}",
            f"--mac-addr={self.gateway_mac}",
            *(_port_option(forward) for forward in forwards),
        ]
        if self.guest6 is not None:
            options.append(f"--address={self.guest6}")
        if mtu is not None:
            options.append(f"--mtu={mtu}")
        return options


def _port_option(forward: Forward) -> str:
    return f"--{forward.protocol}-ports={forward.address}/{forward.host_port}:{forward.guest_port}"


def network_of(config: VifConfig) -> UserNet:
    """Return an interface's network: what ip= says, or one that follows from its number. Raises ConfigError."""
    base = IPv4Address(_FIRST_NETWORK + config.devid % _NETWORKS * _NETWORK_SIZE)
    guest, guest6 = IPv4Interface(f"{base + _GUEST}/{_PREFIX}"), None
    for text in config.ip:
        try:
            given = ip_interface(text)
        except ValueError:
            raise ConfigError(f"{config.position}: vif: ip={text} is not an address such as 192.168.7.15/24") from None
        if isinstance(given, IPv4Interface):
            guest = given if "/" in text else IPv4Interface(f"{given.ip}/{_PREFIX}")
        else:
            guest6 = given.ip
    hosts = guest.network
    if hosts.num_addresses <= _GATEWAY + 1:
        raise ConfigError(f"{config.position}: vif: ip={guest} leaves no address for a gateway; use a prefix up to /29")
    gateway = next(host for host in (hosts[_GATEWAY], hosts[1]) if host != guest.ip)
    return UserNet(guest, gateway, guest6)


def _outlet() -> list[str]:
    """Return options for a host without a way out, whose loopback can be had all the same."""
    if _has_route(_IPV4_ROUTES, 1, _IPV4_ANY) or _has_route(_IPV6_ROUTES, 0, _IPV6_ANY):
        return []
    return ["--ipv4-only", f"--interface={_LOOPBACK}"]


def _has_route(path: Path, column: int, destination: str) -> bool:
    """Tell whether a table of the kernel's has a route to everywhere, by an interface that leads out of the host."""
    try:
        rows = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return False
    return any(len(row) > column and row[column] == destination and _LOOPBACK not in (row[0], row[-1]) for row in rows)
