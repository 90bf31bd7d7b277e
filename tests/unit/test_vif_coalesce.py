"""Segments put back together: cut again they are what they were, and nothing else is touched."""

from __future__ import annotations

from struct import pack_into, unpack_from
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_vif_offload import EVERYTHING, NOTHING, ethernet, flat, ip, is_right, transport
from vif_rig import connected

from xenpy.devices.vif.coalesce import coalesce
from xenpy.devices.vif.frame import Frame, Gso, Offloads
from xenpy.devices.vif.headers import TCP
from xenpy.devices.vif.offload import adapt

if TYPE_CHECKING:
    from collections.abc import Callable

MSS = 100
START = 0xFFFF_FF80


def cut(payload: bytes, *, v6: bool = False, flags: int = 0x18, mss: int = MSS, seq: int = START) -> list[Frame]:
    """Return the segments that a stream's bytes come in, complete with checksums."""
    data = ethernet(v6, ip(v6, TCP, transport(TCP, payload, flags=flags, seq=seq)))
    segments = [flat(each) for each in adapt(Frame([data], len(data), csum_blank=True, gso=Gso(mss, v6)), NOTHING)]
    return [Frame([memoryview(each)], len(each), validated=True) for each in segments]


def counts(frames: list[Frame], receiver: Offloads = EVERYTHING) -> list[int]:
    return [count for _, count in coalesce(frames, receiver)]


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("size", [200, 201, 999, 5000, 60000])
def test_joined_and_cut_again_they_are_what_they_were(v6: bool, size: int) -> None:
    payload = bytes(value * 7 & 0xFF for value in range(size))
    frames = cut(payload, v6=v6, mss=1448 if size > 9999 else MSS)
    joined = coalesce(frames, EVERYTHING)
    short = size % MSS in range(1, 48) and size <= 9999  # too small a piece to be worth it
    assert [count for _, count in joined] == ([len(frames) - 1, 1] if short else [len(frames)])
    again = [flat(part) for frame, _ in joined for part in adapt(frame, NOTHING)]
    assert again == [flat(frame) for frame in frames]
    large = joined[0][0]
    assert (large.csum_blank, large.gso) == (True, Gso(1448 if size > 9999 else MSS, v6))
    (complete,) = adapt(large, Offloads(gso4=True, gso6=True))
    assert is_right(flat(complete), v6, TCP)


def test_nothing_grows_beyond_a_frame() -> None:
    frames = cut(bytes(40000), mss=1000) + cut(bytes(40000), mss=1000, seq=START + 40000 & 0xFFFFFFFF)
    for frame in frames[:40]:
        head = bytearray(frame.head)
        head[47] &= ~8 & 0xFF  # PSH would end the run
        frame.parts = [head]
    assert counts(frames) == [65, 15]


def altered(change: Callable[[bytearray], None]) -> list[Frame]:
    """Return four segments, the third changed."""
    frames = cut(bytes(4 * MSS))
    head = bytearray(frames[2].head)
    change(head)
    frames[2] = Frame([head], len(head), validated=True)
    return frames


@pytest.mark.parametrize("offset", [0, 6, 15, 22, 26, 30, 34, 37, 42, 48, 54, 65])
def test_headers_that_differ_end_a_run(offset: int) -> None:
    def change(head: bytearray) -> None:
        head[offset] ^= 1

    assert counts(altered(change)) == [2, 1, 1]


@pytest.mark.parametrize("flags", [0x11, 0x12, 0x14, 0x30, 0x50, 0x90, 0x00])
def test_other_flags_stay_apart(flags: int) -> None:
    assert counts(altered(lambda head: pack_into("B", head, 47, flags))) == [2, 1, 1]


def test_a_push_ends_a_run_and_is_passed_on() -> None:
    frames = altered(lambda head: pack_into("B", head, 47, 0x18))
    (first, one), (last, two) = coalesce(frames, EVERYTHING)
    assert (one, two) == (3, 1)
    assert first.head[47] == last.head[47] == 0x18


def test_a_gap_and_a_longer_segment_end_a_run() -> None:
    frames = cut(bytes(4 * MSS))
    assert counts([frames[0], frames[2], frames[3]]) == [1, 2]
    longer = cut(bytes(200), mss=200, seq=START + 2 * MSS & 0xFFFFFFFF)
    assert counts([*frames[:2], *longer]) == [2, 1]


def test_what_is_not_known_to_be_right_stays_as_it_is() -> None:
    frames = cut(bytes(4 * MSS))
    for frame in frames:
        frame.validated = False
    assert coalesce(frames, EVERYTHING) == [(frame, 1) for frame in frames]


@pytest.mark.parametrize("v6", [False, True])
def test_only_for_those_who_want_it(v6: bool) -> None:
    frames = cut(bytes(4 * MSS), v6=v6)
    assert counts(frames, Offloads(gso4=True)) == ([1] * 4 if v6 else [4])
    assert counts(frames, Offloads(gso6=True)) == ([4] if v6 else [1] * 4)


@given(st.lists(st.binary(min_size=14, max_size=80), max_size=6), st.booleans())
def test_noise_passes_unchanged(noise: list[bytes], tcp: bool) -> None:
    start = bytes(12) + b"\x08\x00\x45"
    datas = [(start + data if tcp else data) for data in noise]
    frames = [Frame([data], len(data), validated=True) for data in datas]
    joined = coalesce(frames, EVERYTHING)
    assert sum(count for _, count in joined) == len(frames)
    assert [flat(frame) for frame, count in joined if count == 1] == datas or any(count > 1 for _, count in joined)


def test_a_guest_gets_a_stream_in_few_frames_and_waits_for_room_as_before() -> None:
    payload = bytes(value * 11 & 0xFF for value in range(30 * 1448))
    frames = cut(payload, mss=1448)
    with connected(feature_gso_tcpv4=1) as front:
        front.first.post(5)
        assert front.link.give(*frames) == 0
        front.first.post(12)
        (got,) = front.first.receive()
        assert got.data[66:] == payload
        assert unpack_from(">H", got.data, 16)[0] == len(got.data) - 14
        assert front.link.waiting == []
