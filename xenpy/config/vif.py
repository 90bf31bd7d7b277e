"""vif= strings and the addresses of interfaces that are given none.

Ref: xl-network-configuration(5)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from xenpy.config.forward import Forward, parse_forwards
from xenpy.config.specs import Spec
from xenpy.config.text import quote

if TYPE_CHECKING:
    from collections.abc import Iterable

    from xenpy.config.grammar import Atom, Position

_HOST_SIDE = ("bridge", "gatewaydev", "netdev", "vifname", "script", "ip", "backend", "vlan")
_NAMES = frozenset((*_HOST_SIDE, "mac", "type", "model", "rate", "devid", "mtu", "accel", "hostfwd"))
_FLAGS = ("trusted", "untrusted")
_REPEATED = ("hostfwd",)

_MAC_GROUPS = 6
_MULTICAST = 0x01  # of a MAC address's first byte
_XEN_OUI = (0x00, 0x16, 0x3E)
_LOW_BITS = 0x7F, 0xFF, 0xFF  # random addresses of Xen's toolstacks keep the fourth byte below 0x80

_MAX_DEVID = 0xFFFF
_MIN_MTU, _MAX_MTU = 68, 65521  # IPv4's least (RFC 791); netif.h's packet of 65535 bytes less an Ethernet header
_DEFAULT_INTERVAL_US = 50_000
_MAX_INTERVAL_US = (1 << 32) - 1
_MAX_RATE = (1 << 64) - 1
_RATE_UNITS = {
    f"{multiple}{unit}/s": (factor, bits)
    for multiple, factor in (("", 1), ("K", 10**3), ("M", 10**6), ("G", 10**9))
    for unit, bits in (("b", 8), ("B", 1))
}
_INTERVAL_UNITS = {"us": 1, "ms": 1000, "s": 1_000_000, "": 1_000_000}


class VifRate(NamedTuple):
    """A credit: `bytes_per_interval` may leave the guest every `interval_us` microseconds."""

    bytes_per_interval: int
    interval_us: int


@dataclass(frozen=True, slots=True)
class VifConfig:
    """One vif= entry; `mac` is six lower-case hexadecimal groups.

    Ref: xl-network-configuration(5)
    """

    devid: int
    mac: str
    bridge: str | None = None
    gatewaydev: str | None = None
    vifname: str | None = None
    script: str | None = None
    ip: tuple[str, ...] = ()
    rate: VifRate | None = None
    mtu: int | None = None
    vlan: str | None = None
    trusted: bool = True
    forwards: tuple[Forward, ...] = ()
    position: Position | None = field(default=None, compare=False)


def parse_vifs(atoms: Iterable[Atom], seed: str, warn: list[str]) -> tuple[VifConfig, ...]:
    """Parse the elements of vif=; interfaces without mac= get addresses that depend on `seed` and their devid alone."""
    specs = [Spec("vif", atom, _NAMES, _FLAGS, _REPEATED) for atom in atoms]
    explicit = [spec.number("devid", -1, low=0, high=_MAX_DEVID) for spec in specs]
    free = iter(sorted(set(range(len(specs))) - set(explicit)))
    vifs: dict[int, VifConfig] = {}
    macs: dict[str, VifConfig] = {}
    for spec, devid in zip(specs, explicit, strict=True):
        vif = _parse_vif(spec, next(free) if devid < 0 else devid, seed, warn)
        for what, other in (("devid", vifs.get(vif.devid)), ("mac", macs.get(vif.mac))):
            if other:
                raise spec.fail(f"its {what} is also that of the vif at {other.position}")
        vifs[vif.devid] = macs[vif.mac] = vif
    return tuple(vifs.values())


def _parse_vif(spec: Spec, devid: int, seed: str, warn: list[str]) -> VifConfig:
    spec.refuse_backend()
    for name, instead in (("netdev", "it is called gatewaydev now"), ("accel", "it has no effect")):
        if spec.get(name):
            warn.append(f"{spec.position}: vif: {name}= is deprecated: {instead}")
    kind = spec.get("type")
    if kind not in (None, "vif"):
        raise spec.fail(
            f"type={kind} is refused: only HVM guests have emulated interfaces"
            if kind == "ioemu"
            else f"type={kind} is not vif"
        )
    if spec.flags == set(_FLAGS):
        raise spec.fail("it is both trusted and untrusted")
    forwards = parse_forwards(spec, spec.every("hostfwd"))
    for name in ("bridge", "vifname"):
        if forwards and spec.get(name):
            raise spec.fail(f"hostfwd= is for user networking, which {name}= is not: leave one of them out")
    mac = spec.get("mac")
    rate = spec.get("rate")
    return VifConfig(
        devid=devid,
        mac=_parse_mac(spec, mac) if mac else default_mac(seed, devid),
        bridge=spec.get("bridge"),
        gatewaydev=spec.get("gatewaydev") or spec.get("netdev"),
        vifname=spec.get("vifname"),
        script=spec.get("script"),
        ip=tuple((spec.get("ip") or "").split()),
        rate=_parse_rate(spec, rate) if rate else None,
        mtu=spec.number("mtu", 0, low=_MIN_MTU, high=_MAX_MTU) or None,
        vlan=spec.get("vlan"),
        trusted="untrusted" not in spec.flags,
        forwards=forwards,
        position=spec.position,
    )


def default_mac(seed: str, devid: int) -> str:
    """Return the address of interface `devid` of the domain known as `seed`: in Xen's range, the same at every start.

    Ref: xl-network-configuration(5), mac
    """
    from hashlib import sha256

    digest = sha256(f"{seed}/{devid}".encode()).digest()
    low = (byte & mask for byte, mask in zip(digest, _LOW_BITS, strict=False))
    return _format_mac((*_XEN_OUI, *low))


def _format_mac(groups: Iterable[int]) -> str:
    return ":".join(f"{group:02x}" for group in groups)


def _parse_mac(spec: Spec, text: str) -> str:
    groups = text.replace("-", ":").split(":")
    digits = frozenset("0123456789abcdefABCDEF")
    if len(groups) != _MAC_GROUPS or not all(0 < len(group) <= 2 and digits.issuperset(group) for group in groups):
        raise spec.fail(f"mac={text} is not six pairs of hexadecimal digits, such as 00:16:3e:01:02:03")
    numbers = [int(group, 16) for group in groups]
    if numbers[0] & _MULTICAST or not any(numbers):
        raise spec.fail(f"mac={text} is a multicast or zero address, which no interface can have")
    return _format_mac(numbers)


def _parse_rate(spec: Spec, text: str) -> VifRate:
    """Parse `10Mb/s` or `1MB/s@20ms`; an interval without a unit is in seconds, as libxlutil has it."""
    rate_text, at, interval_text = text.partition("@")
    rate, rate_unit = _split_number(rate_text)
    interval, interval_unit = _split_number(interval_text) if at else (_DEFAULT_INTERVAL_US, "us")
    if rate is None or rate_unit not in _RATE_UNITS or interval is None or interval_unit not in _INTERVAL_UNITS:
        raise spec.fail(f"rate={text} is not like 10Mb/s, 250KB/s or 1MB/s@20ms")
    interval_us = interval * _INTERVAL_UNITS[interval_unit]
    factor, bits = _RATE_UNITS[rate_unit]
    credit = rate * factor // bits * interval_us // 1_000_000
    if not 0 < interval_us <= _MAX_INTERVAL_US or credit > _MAX_RATE:
        raise spec.fail(f"rate={quote(text)} is too large")
    if not credit:
        raise spec.fail(f"rate={text} comes to less than a byte in {interval_us} us")
    return VifRate(credit, interval_us)


def _split_number(text: str) -> tuple[int | None, str]:
    digits = text[: len(text) - len(text.lstrip("0123456789"))]
    return (int(digits) if 0 < len(digits) <= len(str(_MAX_RATE)) else None), text[len(digits) :]
