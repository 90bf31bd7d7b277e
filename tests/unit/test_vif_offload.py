"""Checksums, segmentation and the headers they need, against plain definitions of the same."""

from __future__ import annotations

import itertools
from struct import pack, unpack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpy.devices.vif.checksum import checksum, ones_sum
from xenpy.devices.vif.frame import Frame, Gso, Offloads
from xenpy.devices.vif.headers import TCP, UDP, parse
from xenpy.devices.vif.offload import MIN_MSS, adapt, blank

ETHERNET = bytes(range(12))
EVERYTHING = Offloads(csum=True, csum6=True, gso4=True, gso6=True)
NOTHING = Offloads()


def words_sum(data: bytes) -> int:
    """RFC 1071, word by word."""
    total = sum(unpack(f">{len(data) // 2 + len(data) % 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def transport(protocol: int, payload: bytes, *, sum_field: int = 0, flags: int = 0x18, seq: int = 1000) -> bytes:
    if protocol == UDP:
        return pack(">HHHH", 53, 5353, 8 + len(payload), sum_field) + payload
    return pack(">HHIIBBHHH", 80, 33000, seq, 7, 8 << 4, flags, 500, sum_field, 0) + bytes(range(12)) + payload


def ip(v6: bool, protocol: int, body: bytes, *, ident: int = 77) -> bytes:
    if v6:
        return pack(">IHBB", 6 << 28, len(body), protocol, 64) + bytes(range(1, 33)) + body
    header = pack(">BBHHHBBH", 0x45, 0, 20 + len(body), ident, 0x4000, 64, protocol, 0) + bytes(range(10, 18))
    return header[:10] + pack(">H", 0xFFFF ^ words_sum(header)) + header[12:] + body


def ethernet(v6: bool, packet: bytes, tags: int = 0) -> bytes:
    return ETHERNET + b"\x81\x00\x00\x07" * tags + (b"\x86\xdd" if v6 else b"\x08\x00") + packet


def is_right(data: bytes, v6: bool, protocol: int, tags: int = 0) -> bool:
    """Check a frame's transport checksum as a receiver does, and its IPv4 header's."""
    packet = data[14 + 4 * tags :]
    if v6:
        size = unpack(">H", packet[4:6])[0]
        addresses, body = packet[8:40], packet[40 : 40 + size]
    else:
        assert words_sum(packet[:20]) == 0xFFFF
        size = unpack(">H", packet[2:4])[0] - 20
        addresses, body = packet[12:20], packet[20 : 20 + size]
    return words_sum(addresses + pack(">II", protocol, len(body)) + body) == 0xFFFF


def flat(frame: Frame) -> bytes:
    return b"".join(frame.parts)


@given(st.lists(st.binary(max_size=70), max_size=8), st.integers(0, 0xFFFF))
def test_sum_of_parts_is_the_sum_of_words(parts: list[bytes], start: int) -> None:
    data = b"".join(parts)
    expected = words_sum(data + b"\0" * (len(data) % 2) + pack(">H", start))
    assert ones_sum(parts, start) == (expected or 0xFFFF)
    assert checksum(parts, start) == 0xFFFF - (expected or 0xFFFF)


@given(
    v6=st.booleans(), protocol=st.sampled_from([TCP, UDP]), payload=st.binary(max_size=300), tags=st.integers(0, 2),
    cut=st.integers(0, 300), padding=st.integers(0, 9), field=st.integers(0, 0xFFFF),
)  # fmt: skip
def test_blank_checksums_are_completed_whatever_stands_there(
    v6: bool, protocol: int, payload: bytes, tags: int, cut: int, padding: int, field: int
) -> None:
    data = ethernet(v6, ip(v6, protocol, transport(protocol, payload, sum_field=field)), tags) + b"x" * padding
    headers = parse(data)
    assert headers is not None
    at = min(headers.payload + cut, len(data))
    (done,) = adapt(Frame([data[:at], memoryview(data)[at:]], len(data), csum_blank=True), NOTHING)
    assert is_right(flat(done), v6, protocol, tags)
    assert not done.csum_blank
    assert flat(done)[: headers.checksum] == data[: headers.checksum]
    assert flat(done)[headers.checksum + 2 :] == data[headers.checksum + 2 :]


def test_a_udp_checksum_is_never_zero() -> None:
    base = ethernet(False, ip(False, UDP, transport(UDP, bytes(2))))
    (done,) = adapt(Frame([base], len(base), csum_blank=True), NOTHING)
    wanted = unpack(">H", flat(done)[40:42])[0]
    data = base[:-2] + pack(">H", wanted)  # makes the sum all ones
    (done,) = adapt(Frame([data], len(data), csum_blank=True), NOTHING)
    assert flat(done)[40:42] == b"\xff\xff"
    assert is_right(flat(done), False, UDP)


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize(
    ("size", "mss"), [(0, 100), (1, 100), (100, 100), (101, 100), (9000, 1448), (65000, 536), (500, 1)]
)
@pytest.mark.parametrize("flags", [0x18, 0x19, 0x99])
def test_segments_say_what_the_large_one_said(v6: bool, size: int, mss: int, flags: int) -> None:
    payload = bytes(value & 0xFF for value in range(size))
    data = ethernet(v6, ip(v6, TCP, transport(TCP, payload, flags=flags, seq=0xFFFF_FF00)))
    large = Frame([data[:90], data[90:]], len(data), csum_blank=True, gso=Gso(mss, v6))
    (whole,) = adapt(large, EVERYTHING)
    assert whole is large
    parts = [flat(part) for part in adapt(large, NOTHING)]
    mss = max(mss, MIN_MSS)
    assert len(parts) == max(1, -(-size // mss))
    start = 14 + (40 if v6 else 20)
    for number, (part, last) in enumerate(zip(parts, [*[False] * (len(parts) - 1), True], strict=True)):
        assert is_right(part, v6, TCP)
        seq, seen = unpack(">I", part[start + 4 : start + 8])[0], part[start + 13]
        assert seq == (0xFFFF_FF00 + number * mss) & 0xFFFF_FFFF
        assert seen == flags & (0xFF if last else ~0x09) & (0xFF if not number else ~0x80)
        if not v6:
            assert unpack(">H", part[18:20])[0] == 77 + number
    assert b"".join(part[start + 32 :] for part in parts) == payload


@pytest.mark.parametrize("offloads", [Offloads(csum=True), Offloads(csum6=True)])
@pytest.mark.parametrize("v6", [False, True])
def test_a_checksum_is_left_to_who_does_it(offloads: Offloads, v6: bool) -> None:
    data = ethernet(v6, ip(v6, UDP, transport(UDP, b"payload")))
    (done,) = adapt(Frame([data], len(data), csum_blank=True), offloads)
    assert done.csum_blank is (offloads.csum6 if v6 else offloads.csum)


def test_blank_puts_the_sum_of_the_pseudo_header() -> None:
    data = ethernet(False, ip(False, TCP, transport(TCP, b"data", sum_field=0x1234)))
    headers = parse(data)
    assert headers is not None
    done = flat(blank(Frame([data], len(data), csum_blank=True), headers))
    partial = unpack(">H", done[headers.checksum : headers.checksum + 2])[0]
    assert partial == words_sum(data[26:34] + pack(">II", TCP, len(data) - 34))


@given(st.binary(max_size=120), st.sampled_from([b"", b"\x08\x00", b"\x86\xdd", b"\x81\x00"]), st.booleans())
def test_headers_lie_within_whatever_is_given(noise: bytes, kind: bytes, large: bool) -> None:
    data = ETHERNET + kind + noise
    headers = parse(data)
    if headers is not None:
        assert headers.network < headers.transport < headers.payload <= len(data)
        assert headers.checksum + 2 <= headers.payload
    gso = Gso(100, False) if large else None
    done = list(adapt(Frame([data], len(data), csum_blank=True, gso=gso), NOTHING))
    assert bool(done) == (headers is not None and (gso is None or (headers.protocol == TCP and not headers.v6)))


@pytest.mark.parametrize("size", [13, 14, 33, 34, 53])
def test_headers_cut_short_are_none(size: int) -> None:
    data = ethernet(False, ip(False, TCP, transport(TCP, b"")))
    assert parse(data) is not None
    assert parse(data[:size]) is None


def test_fragments_and_extensions() -> None:
    data = bytearray(ethernet(False, ip(False, UDP, transport(UDP, b"x"))))
    data[20] |= 0x20  # more fragments
    assert parse(data) is None
    body = bytes([UDP, 1]) + bytes(14) + transport(UDP, b"x")
    headers = parse(ethernet(True, ip(True, 60, body)))
    assert headers is not None
    assert (headers.protocol, headers.transport) == (UDP, 14 + 40 + 16)
    chain = b"".join(bytes([60, 0]) + bytes(6) for _ in itertools.repeat(None, 30))
    assert parse(ethernet(True, ip(True, 60, chain))) is None
