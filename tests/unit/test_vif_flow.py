"""The Toeplitz hash against the values published for it, and what is hashed."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from xenpy.abi.netif import CtrlType, HashType
from xenpy.devices.vif.flow import Steering, toeplitz
from xenpy.devices.vif.frame import Frame

KEY = bytes.fromhex("6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa")
# Ref: Microsoft, "Verifying the RSS Hash Calculation": source, destination, ports, hash with ports, hash without
PUBLISHED = [
    ("66.9.149.187", 2794, "161.142.100.80", 1766, 0x51CCC178, 0x323E8FC2),
    ("199.92.111.2", 14230, "65.69.140.83", 4739, 0xC626B0EA, 0xD718262A),
    ("24.19.198.95", 12898, "12.22.207.184", 38024, 0x5C2B394A, 0xD2D0A5DE),
    ("38.27.205.30", 48228, "209.142.163.6", 2217, 0xAFC7327F, 0x82989176),
    ("153.39.163.191", 44251, "202.188.127.2", 1303, 0x10E828A2, 0x5D1809C5),
    ("3ffe:2501:200:1fff::7", 2794, "3ffe:2501:200:3::1", 1766, 0x40207D3D, 0x2CC18CD5),
]


def frame(source: str, source_port: int, dest: str, dest_port: int, protocol: int = 6) -> Frame:
    addresses = ip_address(source).packed + ip_address(dest).packed
    ports = source_port.to_bytes(2, "big") + dest_port.to_bytes(2, "big") + bytes(8) + b"\x50" + bytes(7)
    if len(addresses) == 8:
        head = bytes(12) + b"\x08\x00\x45" + bytes(8) + bytes([protocol]) + bytes(2) + addresses + ports
    else:
        head = bytes(12) + b"\x86\xdd\x60" + bytes(5) + bytes([protocol, 64]) + addresses + ports
    return Frame([head], len(head))


def steering(*types: HashType, queues: int = 4, key: bytes = KEY) -> Steering:
    made = Steering(queues, lambda _gref, size: key[:size])
    made.control(CtrlType.SET_HASH_ALGORITHM, (1, 0, 0))
    made.control(CtrlType.SET_HASH_FLAGS, (sum(1 << kind for kind in types), 0, 0))
    made.control(CtrlType.SET_HASH_KEY, (1, len(key), 0))
    return made


@pytest.mark.parametrize(("source", "source_port", "dest", "dest_port", "tcp", "plain"), PUBLISHED)
def test_published_values(source: str, source_port: int, dest: str, dest_port: int, tcp: int, plain: int) -> None:
    every, flow = steering(*HashType), frame(source, source_port, dest, dest_port)
    for _ in range(2):  # computed, then remembered
        assert every.choose(flow) == tcp % 4
        assert flow.hash is not None
        assert flow.hash.value == tcp
    v6 = ":" in source
    assert flow.hash.type == (HashType.IPV6_TCP if v6 else HashType.IPV4_TCP)
    other = frame(source, source_port, dest, dest_port, protocol=17)
    every.choose(other)
    assert other.hash is not None
    assert (other.hash.type, other.hash.value) == (HashType.IPV6 if v6 else HashType.IPV4, plain)


def test_missing_bytes_of_a_key_are_zero() -> None:
    assert toeplitz(b"", b"\xff" * 36) == 0
    assert toeplitz(KEY[:10], b"\xff" * 12) == toeplitz(KEY[:10] + bytes(30), b"\xff" * 12)


def test_what_is_not_hashed_goes_to_the_first_queue_without_a_hash() -> None:
    only_v6 = steering(HashType.IPV6)
    for flow in (frame(*PUBLISHED[0][:4]), Frame([bytes(60)], 60)):
        assert only_v6.choose(flow) == 0
        assert flow.hash is None


def test_disabling_the_algorithm_ends_the_hashes() -> None:
    every, flow = steering(*HashType), frame(*PUBLISHED[0][:4])
    every.control(CtrlType.SET_HASH_ALGORITHM, (0, 0, 0))
    every.choose(flow)
    assert flow.hash is None


def test_remembered_flows_are_few() -> None:
    every = steering(*HashType)
    for port in range(5000):
        every.choose(frame("10.0.0.1", port, "10.0.0.2", 80))
    assert len(every._known) <= 4096
