"""Which queue of a guest's a frame goes to: the guest's own hash and table, set over the control ring, or ours.

Ref: xen/include/public/io/netif.h, "Hash types", "Control messages"
"""

from __future__ import annotations

from struct import iter_unpack
from typing import TYPE_CHECKING, Any, Final

from xenpy.abi.netif import (
    XEN_NETIF_CTRL_HASH_ALGORITHM_NONE,
    XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ,
    CtrlStatus,
    CtrlType,
    HashType,
)
from xenpy.devices.vif.frame import FlowHash
from xenpy.devices.vif.headers import TCP, ip_addresses, parse
from xenpy.memory import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from xenpy.devices.vif.frame import Frame

MAX_KEY: Final = 40
"""Bytes: enough for the longest input, two IPv6 addresses and two ports, and the 32 bits of the last window."""
MAX_MAPPING: Final = 128
_MAX_FLOWS: Final = 4096
_ALL_TYPES: Final = sum(1 << kind for kind in HashType)
_ENTRY_SIZE: Final = 4
_WINDOW: Final = 32

Answer = tuple[CtrlStatus, int]
_OKAY: Final[Answer] = (CtrlStatus.SUCCESS, 0)
_INVALID: Final[Answer] = (CtrlStatus.INVALID_PARAMETER, 0)
_OVERFLOW: Final[Answer] = (CtrlStatus.BUFFER_OVERFLOW, 0)
_UNSUPPORTED: Final[Answer] = (CtrlStatus.NOT_SUPPORTED, 0)


def toeplitz(key: bytes, data: bytes) -> int:
    """Return the 32-bit Toeplitz hash of `data`; key bytes that are missing are zero."""
    bits = 8 * len(data)
    stream = int.from_bytes(key.ljust(len(data) + _WINDOW // 8, b"\0"), "big")
    shift = 8 * max(len(key), len(data) + _WINDOW // 8) - _WINDOW
    number = int.from_bytes(data, "big")
    value = 0
    for position in range(bits):
        if number >> (bits - 1 - position) & 1:
            value ^= stream >> (shift - position)
    return value & 0xFFFF_FFFF


class Steering:
    """Chooses queues for one connection of a frontend; `read_page` copies bytes from the start of a granted page."""

    def __init__(self, queues: int, read_page: Callable[[int, int], bytes]) -> None:
        self._queues = queues
        self._read_page = read_page
        self._algorithm = XEN_NETIF_CTRL_HASH_ALGORITHM_NONE
        self._types = 0
        self._key = b""
        self._mapping: list[int] = []
        self._known: dict[bytes, int] = {}

    def state(self) -> dict[str, Any]:
        """Return what the guest has set, for `adopt`."""
        return {
            "algorithm": self._algorithm, "types": self._types, "key": self._key.hex(), "mapping": list(self._mapping)
        }  # fmt: skip

    def adopt(self, state: Mapping[str, Any]) -> None:
        """Choose as another one does, whose `state` this is."""
        self._algorithm, self._types = state["algorithm"], state["types"]
        self._key, self._mapping = bytes.fromhex(state["key"]), state["mapping"]
        self._known.clear()

    def choose(self, frame: Frame) -> int:
        """Return the queue for a frame, and put the hash in it if the guest asked for one."""
        frame.hash = None
        if not self._types:
            return self._own_choice(frame) if self._queues > 1 else 0
        found = self._input(frame)
        if found is None:
            return 0
        kind, data = found
        value = self._known.get(data)
        if value is None:
            if len(self._known) >= _MAX_FLOWS:
                self._known.clear()
            value = self._known[data] = toeplitz(self._key, data)
        frame.hash = FlowHash(kind, self._algorithm, value)
        if self._mapping:
            return self._mapping[value % len(self._mapping)]
        return value % self._queues

    def _own_choice(self, frame: Frame) -> int:
        """Keep a flow in one queue; which one is for nobody to know in advance (Python's hash of bytes is keyed)."""
        headers = parse(frame.head)
        return hash(headers.addresses(frame.head) + headers.ports(frame.head)) % self._queues if headers else 0

    def _input(self, frame: Frame) -> tuple[HashType, bytes] | None:
        """Return the most specific of the wanted hash types that a frame has, and what it covers."""
        found = ip_addresses(frame.head)
        if found is None:
            return None
        v6, addresses = found
        plain, with_ports = (HashType.IPV6, HashType.IPV6_TCP) if v6 else (HashType.IPV4, HashType.IPV4_TCP)
        if self._types & 1 << with_ports:
            headers = parse(frame.head)
            if headers is not None and headers.protocol == TCP:
                return with_ports, addresses + headers.ports(frame.head)
        return (plain, addresses) if self._types & 1 << plain else None

    def control(self, request: int, data: tuple[int, int, int]) -> Answer:
        """Carry out a request of the control ring; return its status and data. Raises GrantError for a bad page."""
        match request:
            case CtrlType.SET_HASH_ALGORITHM:
                return self._set_algorithm(data[0])
            case CtrlType.GET_HASH_FLAGS:
                return (CtrlStatus.SUCCESS, _ALL_TYPES) if self._algorithm else _UNSUPPORTED
            case CtrlType.SET_HASH_FLAGS:
                return self._set_types(data[0])
            case CtrlType.SET_HASH_KEY:
                return self._set_key(data[0], data[1])
            case CtrlType.GET_HASH_MAPPING_SIZE:
                return CtrlStatus.SUCCESS, MAX_MAPPING
            case CtrlType.SET_HASH_MAPPING_SIZE:
                return self._set_mapping_size(data[0])
            case CtrlType.SET_HASH_MAPPING:
                return self._set_mapping(*data)
            case CtrlType.GET_GREF_MAPPING_SIZE:
                return _OKAY if data[0] < self._queues else _INVALID  # 0 entries: mappings are not kept
        return _UNSUPPORTED

    def _set_algorithm(self, algorithm: int) -> Answer:
        if algorithm not in (XEN_NETIF_CTRL_HASH_ALGORITHM_NONE, XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ):
            return _INVALID
        self._algorithm = algorithm
        if not algorithm:
            self._types = 0
        return _OKAY

    def _set_types(self, types: int) -> Answer:
        if not self._algorithm:
            return _UNSUPPORTED
        if types & ~_ALL_TYPES:
            return _INVALID
        self._types = types
        return _OKAY

    def _set_key(self, gref: int, size: int) -> Answer:
        if size > MAX_KEY:
            return _OVERFLOW
        self._key = self._read_page(gref, size) if size else b""
        self._known.clear()
        return _OKAY

    def _set_mapping_size(self, size: int) -> Answer:
        if size > MAX_MAPPING:
            return _INVALID
        self._mapping = [0] * size
        return _OKAY

    def _set_mapping(self, gref: int, size: int, offset: int) -> Answer:
        if offset + size > len(self._mapping) or size * _ENTRY_SIZE > PAGE_SIZE:
            return _OVERFLOW
        entries = [entry for (entry,) in iter_unpack("<I", self._read_page(gref, size * _ENTRY_SIZE))] if size else []
        if any(entry >= self._queues for entry in entries):
            return _INVALID
        self._mapping[offset : offset + size] = entries
        return _OKAY
