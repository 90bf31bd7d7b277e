"""VNC: what a viewer is told and what it may say, without a network."""

from __future__ import annotations

import os
import random
import struct

import pytest
from vnc_rig import EXTENDED, HEIGHT, RAW, RESIZE, TIGHT, WIDTH, ZLIB, Viewer, noise, painted

from xenpy.devices.vkbd.keys import KEYS
from xenpy.devices.vnc.frame import Frame, Rect
from xenpy.devices.vnc.keysyms import KEYSYMS, code_of_keysym, code_of_scancode
from xenpy.devices.vnc.password import response
from xenpy.devices.vnc.pixels import PixelFormat, ViewerError

# -- pictures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", [RAW, ZLIB, TIGHT])
def test_a_picture_and_what_changes_in_it(encoding: int) -> None:
    frame = noise()
    viewer = Viewer(frame)
    viewer.enter(99, encoding, RAW)
    assert viewer.opened == [True]
    assert not viewer.session.waits
    viewer.ask(incremental=False)
    assert viewer.session.waits
    assert viewer.show(frame)
    assert viewer.sees(frame)
    assert not viewer.session.waits
    viewer.ask()
    assert not viewer.show(frame)
    assert not viewer.show(Frame(frame.width, frame.height, bytes(bytearray(frame.data))))
    assert viewer.session.waits
    for rect in (Rect(3, 4, 1, 1), Rect(0, 49, 70, 1), Rect(10, 10, 20, 30), Rect(69, 0, 1, 50)):
        frame = painted(frame, rect, os.urandom(3) + b"\0")
        assert viewer.show(frame)
        assert viewer.rects == [rect]
        assert viewer.sees(frame)
        viewer.ask()


def test_changes_far_apart_are_rectangles_of_their_own() -> None:
    frame = noise()
    far = painted(painted(painted(frame, Rect(1, 2, 3, 1)), Rect(60, 40, 2, 2)), Rect(50, 4, 1, 1))
    assert far.changes(frame) == [Rect(1, 2, 50, 3), Rect(60, 40, 2, 2)]
    assert frame.changes(frame) == []
    rng = random.Random(5)
    for _ in range(200):
        rects = [
            Rect(
                x := rng.randrange(WIDTH),
                y := rng.randrange(HEIGHT),
                rng.randint(1, WIDTH - x),
                rng.randint(1, HEIGHT - y),
            )
            for _ in range(3)
        ]
        other = frame
        for rect in rects:
            other = painted(other, rect)
        viewer = bytearray(frame.data)
        for rect in other.changes(frame):
            for line, at in enumerate(
                range((rect.y * WIDTH + rect.x) * 4, (rect.y + rect.height) * WIDTH * 4 + rect.x * 4, WIDTH * 4)
            ):
                if line < rect.height:
                    viewer[at : at + rect.width * 4] = other.data[at : at + rect.width * 4]
        assert viewer == other.data


@pytest.mark.parametrize("encoding", [RAW, ZLIB, TIGHT])
def test_pictures_larger_than_a_rectangle_may_be(encoding: int) -> None:
    frame = noise(2500, 700)
    viewer = Viewer(frame)
    viewer.enter(encoding)
    viewer.ask(incremental=False)
    assert viewer.show(frame)
    assert len(viewer.rects) > 2
    assert viewer.sees(frame)


def test_a_part_is_asked_for() -> None:
    frame = noise()
    viewer = Viewer(frame)
    viewer.enter(RAW)
    viewer.ask(incremental=False)
    viewer.show(frame)
    viewer.ask(incremental=False, rect=(60, 45, 20, 3))
    changed = painted(frame, Rect(1, 1, 2, 2))
    assert viewer.show(changed)
    assert viewer.rects == [(1, 1, 2, 2), (60, 45, 10, 3)]
    viewer.ask(incremental=False, rect=(70, 50, 20, 3))
    assert not viewer.show(changed)


def test_the_screen_changes_its_size() -> None:
    viewer = Viewer(noise())
    viewer.enter(TIGHT, RESIZE)
    viewer.ask()
    larger = noise(100, 20)
    assert viewer.show(larger)
    assert (viewer.width, viewer.height, viewer.rects) == (100, 20, [])
    viewer.ask()
    assert viewer.show(larger)
    assert viewer.sees(larger)


def test_a_viewer_that_keeps_its_size_gets_what_fits() -> None:
    viewer = Viewer(noise())
    viewer.enter(RAW)
    viewer.ask()
    assert viewer.show(noise(100, 20))
    assert viewer.rects == [(0, 0, WIDTH, 20)]


@pytest.mark.parametrize("big", [0, 1])
@pytest.mark.parametrize(
    ("bits", "red", "green", "blue"),
    [
        (32, (255, 0), (255, 8), (255, 16)),
        (32, (1023, 20), (1023, 10), (1023, 0)),
        (16, (31, 11), (63, 5), (31, 0)),
        (8, (7, 0), (7, 3), (3, 6)),
    ],
)  # fmt: skip
def test_pixels_of_every_make(
    bits: int, red: tuple[int, int], green: tuple[int, int], blue: tuple[int, int], big: int
) -> None:
    form = PixelFormat.parse(
        struct.pack(">BBBBHHHBBB3x", bits, bits, big, 1, red[0], green[0], blue[0], red[1], green[1], blue[1])
    )
    frame = noise(16, 4)
    data = form.convert(frame.data)
    size = bits // 8
    for number in range(16 * 4):
        pixel = int.from_bytes(data[number * size : (number + 1) * size], "big" if big else "little")
        wanted = sum(
            (frame.data[number * 4 + place] * (most + 1) >> 8) << shift
            for place, (most, shift) in ((2, red), (1, green), (0, blue))
        )
        assert pixel == wanted
    assert form.tight(frame.data) == data or bits == 32


def test_a_colour_map() -> None:
    frame = painted(Frame(2, 1, bytes(8)), Rect(1, 0, 1, 1), b"\xff\xff\xff\0")
    viewer = Viewer(frame, size=1)
    viewer.enter(RAW)
    viewer.say(struct.pack(">B3x16s", 0, struct.pack(">BBBBHHHBBB3x", 8, 8, 0, 0, 0, 0, 0, 0, 0, 0)))
    assert viewer.unpack(">BxHH") == (1, 0, 256)
    colours = struct.unpack(">768H", viewer.take(256 * 6))
    viewer.ask(incremental=False)
    assert viewer.show(frame)
    assert [colours[pixel * 3 : pixel * 3 + 3] for pixel in viewer.pixels] == [(0, 0, 0), (65535, 65535, 65535)]


# -- who is let in ----------------------------------------------------------------------------------------------------


def test_a_password() -> None:
    pytest.importorskip("Crypto.Cipher.DES", reason="pycryptodome is not installed")
    # DES with a key of zeroes, and one whose mirrored bytes are this password.
    assert response("", bytes(16)) == bytes.fromhex("8ca64de9c1b123a7") * 2
    assert response("pLILW60N and more", b"\x87" * 16) == bytes(16)
    for word, right in (("secret", True), ("secreT", False), ("", False)):
        viewer = Viewer(noise(), password="secret")
        viewer.take(12)
        viewer.say(b"RFB 003.008\n")
        assert viewer.take(2) == b"\1\2"
        viewer.say(b"\2")
        answer = response(word, viewer.take(16))
        if right:
            viewer.say(answer)
            assert viewer.take(4) == bytes(4)
            viewer.say(b"\0")
            assert viewer.opened == [False]
        else:
            with pytest.raises(ViewerError, match="wrong password"):
                viewer.say(answer)
            assert viewer.take(4) == b"\0\0\0\1"
            assert viewer.take(viewer.unpack(">I")[0]) == b"wrong password"
            assert not viewer.opened


@pytest.mark.parametrize("minor", [3, 7])
def test_older_versions(minor: int) -> None:
    viewer = Viewer(noise())
    viewer.take(12)
    viewer.say(b"RFB 003.00%d\n" % minor)
    if minor == 3:
        assert viewer.take(4) == b"\0\0\0\1"
    else:
        assert viewer.take(2) == b"\1\1"
        viewer.say(b"\1")
    assert not viewer.session.out
    viewer.say(b"\1")
    viewer.begin()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (b"GET / HTTP/1.1\r\n", "speaks no version"),
        (b"RFB 003.008\n\2", "security that was not offered"),
        (b"RFB 003.008\n\1\1\7", "message 7"),
        (b"RFB 003.008\n\1\1\xff\1", "message 255, 1"),
        (b"RFB 003.008\n\1\1\0\0\0\0\x18" + bytes(15), "pixels of 24 bits"),
        (b"RFB 003.008\n\1\1\0\0\0\0\x10" + bytes(15), "a colour map of 16 bits"),
        (b"RFB 003.008\n\1\1\0\0\0\0\x08\x08\0\1" + bytes(6) + b"\x08\0\0" + bytes(3), "colours up to"),
    ],
)  # fmt: skip
def test_viewers_that_have_to_go(said: bytes, message: str) -> None:
    viewer = Viewer(noise())
    with pytest.raises(ViewerError, match=message):
        viewer.say(said)


def test_bytes_in_any_pieces_and_any_order_end_well() -> None:
    rng = random.Random(3)
    for _ in range(300):
        viewer = Viewer(noise(8, 8))
        viewer.say(b"RFB 003.008\n\1\1")
        try:
            for _ in range(20):
                viewer.say(bytes([rng.choice([0, 2, 3, 4, 5, 6, 255])]) + rng.randbytes(rng.randrange(40)))
                viewer.session.update(noise(rng.randrange(1, 9), 8, rng.randrange(2)))
        except ViewerError:
            continue


# -- keys and pointer -------------------------------------------------------------------------------------------------


def test_keys_and_pointer() -> None:
    viewer = Viewer(noise())
    viewer.enter(RAW, EXTENDED)
    viewer.hear()
    assert viewer.others == [EXTENDED]
    for pressed, keysym in ((1, 0xFFE1), (1, ord("A")), (0, ord("A")), (0, ord("b")), (1, 0x12345678)):
        viewer.say(struct.pack(">BB2xI", 4, pressed, keysym))
    viewer.say(struct.pack(">BBHII", 255, 0, 1, ord("?"), 0x9D))
    assert viewer.hands.keys == [(42, True), (30, True), (30, False), (97, True)]
    viewer.say(struct.pack(">BBHH", 5, 5, 3, 4) + struct.pack(">BBHH", 5, 0, 9999, 9999))
    assert viewer.hands.places == [(3, 4, 5), (WIDTH - 1, HEIGHT - 1, 0)]
    viewer.say(b"\6\0\0\0" + struct.pack(">I", 200_000) + bytes(200_000) + struct.pack(">BB2xI", 4, 1, ord("x")))
    assert viewer.hands.keys[-1] == (45, True)
    viewer.session.end()
    assert viewer.hands.keys[-3:] == [(42, False), (45, False), (97, False)]


def test_every_character_has_its_key() -> None:
    for char, (code, _) in KEYS.items():
        if char.isprintable():
            assert code_of_keysym(ord(char)) == code
    assert [code_of_keysym(keysym) for keysym in (0xFF0D, 0xFFBE, 0xFFC7, 0xFFC9, 0xFFB7, 0xE9)] == [
        28,
        59,
        68,
        88,
        71,
        None,
    ]
    assert [code_of_scancode(code) for code in (0, 1, 0x58, 0x59, 0xC8, 0xFF)] == [None, 1, 88, None, 103, None]
    assert max(KEYSYMS.values()) < 128
