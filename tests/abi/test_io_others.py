"""Layouts of 9pfs, framebuffer, keyboard and console against the public headers, by the C compiler."""

from __future__ import annotations

import pytest
from conformance import Claim, refuted, require

from xenpy.abi import fbif, kbdif, xen_9pfs
from xenpy.devices.channel.backend import FIRST_CHANNEL
from xenpy.devices.console import IN_SIZE, OUT_SIZE
from xenpy.devices.vkbd.keys import KEY_LEFTSHIFT, KEYS

HEADERS = ("xen/xen.h", "xen/io/9pfs.h", "xen/io/kbdif.h", "xen/io/fbif.h", "xen/io/console.h")
NAMES = {
    **{char: char.upper() for char in "abcdefghijklmnopqrstuvwxyz0123456789"},
    "-": "MINUS", "=": "EQUAL", "[": "LEFTBRACE", "]": "RIGHTBRACE", ";": "SEMICOLON", "'": "APOSTROPHE", "`": "GRAVE",
    "\\": "BACKSLASH", ",": "COMMA", ".": "DOT", "/": "SLASH", " ": "SPACE", "\n": "ENTER", "\t": "TAB",
    "\b": "BACKSPACE", "\x1b": "ESC",
}  # fmt: skip


def test_rings() -> None:
    require(HEADERS)
    words = {"in_cons": "IN_CONS", "in_prod": "IN_PROD", "out_cons": "OUT_CONS", "out_prod": "OUT_PROD"}
    words |= {"ring_order": "RING_ORDER", "ref": "RING_REFS"}
    claims = [
        Claim(field, f"offsetof(struct xen_9pfs_data_intf, {field}) == 4 * {getattr(xen_9pfs, name)}")
        for field, name in words.items()
    ]
    names = ("XENKBD_IN_RING_OFFS", "XENKBD_IN_RING_SIZE", "XENKBD_IN_EVENT_SIZE", "XENKBD_IN_RING_LEN")
    claims += [Claim(name, f"{name} == {getattr(kbdif, name)}") for name in names]
    claims += [Claim(kind.name, f"XENKBD_TYPE_{kind.name} == {kind}") for kind in kbdif.XENKBD_TYPE]
    for layout, fields in (
        (kbdif.MOTION, {"motion.rel_x": 4, "motion.rel_y": 8, "motion.rel_z": 12, "pos.abs_x": 4, "pos.rel_z": 12}),
        (kbdif.KEY, {"key.pressed": 1, "key.keycode": 4}),
    ):
        claims.append(Claim("event", f"sizeof(union xenkbd_in_event) == {layout.size}"))
        for field, offset in fields.items():
            claims.append(Claim(field, f"offsetof(union xenkbd_in_event, {field}) == {offset}"))
    for name, index in (("in_cons", kbdif.IN_CONS), ("in_prod", kbdif.IN_PROD)):
        claims.append(Claim(name, f"offsetof(struct xenkbd_page, {name}) == 4 * {index}"))
    claims.append(Claim("in", f"sizeof(((struct xencons_interface *)0)->in) == {IN_SIZE}"))
    claims.append(Claim("out", f"sizeof(((struct xencons_interface *)0)->out) == {OUT_SIZE}"))
    assert refuted(HEADERS, claims) == {}
    assert FIRST_CHANNEL == 1


@pytest.mark.parametrize(("protocol", "bits"), [("x86_64-abi", 64), ("x86_32-abi", 32)])
def test_the_page_of_a_framebuffer(protocol: str, bits: int) -> None:
    require(HEADERS)
    layout = fbif.LAYOUTS[protocol]
    offsets = {"width": 16, "height": 20, "line_length": 24, "mem_length": 28, "depth": 32, "pd": layout.pd}
    claims = [Claim(field, f"offsetof(struct xenfb_page, {field}) == {offset}") for field, offset in offsets.items()]
    size = {"Q": 8, "I": 4}[layout.word] * fbif.PD_ENTRIES
    claims.append(Claim("pd", f"sizeof(((struct xenfb_page *)0)->pd) == {size}"))
    assert refuted(HEADERS, claims, bits=bits) == {}
    assert fbif.GEOMETRY.size == offsets["depth"] + 1


def test_keycodes() -> None:
    headers = ("linux/input-event-codes.h",)
    require(headers)
    claims = [Claim(name, f"KEY_{name} == {KEYS[char][0]}") for char, name in NAMES.items()]
    claims.append(Claim("shift", f"KEY_LEFTSHIFT == {KEY_LEFTSHIFT}"))
    assert refuted(headers, claims) == {}
    assert {code for code, _ in KEYS.values()} == {KEYS[char][0] for char in NAMES}
    assert all(KEYS[char.upper()] == (KEYS[char][0], True) for char in "abcdefghijklmnopqrstuvwxyz")
