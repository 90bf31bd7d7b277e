"""The grammar and disk strings against Xen's own parser, where Debian's libxenmisc4.17 is installed."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xenpy.config.disk import parse_disk
from xenpy.config.grammar import Atom, Position, parse_text
from xenpy.config.text import parse_integer
from xenpy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

LIBRARY = "libxlutil.so.4.17"  # the disk structure below is this version's

PIECES = st.sampled_from(
    [
        *(
            "a",
            "a=",
            "a+=",
            "a='z'",
            "=",
            "+=",
            "'x'",
            '"y"',
            "1",
            "0x1f",
            "010",
            "[",
            "]",
            ",",
            ";",
            "\n",
            "#c\n",
            " ",
            "\t",
        ),
        *(r"'a\n'", r"'\q'", "b.c", "_", "A", "=1", "['a',]", "[[1],2]", "[]"),
    ]
)
DISK_PIECES = st.sampled_from(
    [
        *(
            "/x",
            "raw",
            "qcow2",
            "",
            "xvda",
            "hdc:cdrom",
            "r",
            "rw",
            "cdrom",
            "vdev=xvdb",
            "format=raw",
            "access=r",
            "phy:/x",
        ),
        *(
            "tap:aio:/x",
            "iscsi:foo",
            "foo:x",
            "foo:/x",
            "no-discard",
            "direct-io-safe",
            " raw",
            "target=/y,z",
            "script=s",
        ),
    ]
)
DISKS = st.lists(DISK_PIECES, max_size=6).map(",".join)
FORMATS = {"raw": 4, "qcow2": 2, "vhd": 3, "empty": 5}  # libxl_disk_format


class Disk(ctypes.Structure):
    """The head of libxl_device_disk, and room for the rest. Ref: _libxl_types.h"""

    _fields_ = [
        ("backend_domid", ctypes.c_uint32),
        ("backend_domname", ctypes.c_char_p),
        ("pdev_path", ctypes.c_char_p),
        ("vdev", ctypes.c_char_p),
        ("backend", ctypes.c_int),
        ("format", ctypes.c_int),
        ("script", ctypes.c_char_p),
        ("removable", ctypes.c_int),
        ("readwrite", ctypes.c_int),
        ("is_cdrom", ctypes.c_int),
        ("direct_io_safe", ctypes.c_bool),
        ("discard_enable", ctypes.c_int),
        ("rest", ctypes.c_char * 1024),
    ]


class Xlu:
    """libxlutil, reporting to nowhere."""

    def __init__(self) -> None:
        self._xlu = ctypes.CDLL(LIBRARY)
        self._xl = ctypes.CDLL("libxenlight.so.4.17")
        self._libc = ctypes.CDLL(None)
        self._libc.fopen.restype = ctypes.c_void_p
        self._null = ctypes.c_void_p(self._libc.fopen(b"/dev/null", b"w"))
        self._xlu.xlu_cfg_init.restype = ctypes.c_void_p

    def close(self) -> None:
        self._libc.fclose(self._null)

    def parse(self, text: str) -> tuple[bool, bytes | None, int | None]:
        """Return whether `text` is accepted, and key `a` as a string and as a number."""
        config = ctypes.c_void_p(self._xlu.xlu_cfg_init(self._null, b"f"))
        data = text.encode()
        accepted = self._xlu.xlu_cfg_readdata(config, data, len(data)) == 0
        string, number = ctypes.c_char_p(), ctypes.c_long()
        has_string = accepted and self._xlu.xlu_cfg_get_string(config, b"a", ctypes.byref(string), 1) == 0
        has_number = accepted and self._xlu.xlu_cfg_get_long(config, b"a", ctypes.byref(number), 1) == 0
        result = accepted, string.value if has_string else None, number.value if has_number else None
        self._xlu.xlu_cfg_destroy(config)
        return result

    def disk(self, text: str) -> Disk | None:
        config = ctypes.c_void_p(self._xlu.xlu_cfg_init(self._null, b"f"))
        disk = Disk()
        self._xl.libxl_device_disk_init(ctypes.byref(disk))
        specs = (ctypes.c_char_p * 1)(text.encode())
        failed = self._xlu.xlu_disk_parse(config, 1, specs, ctypes.byref(disk))
        self._xlu.xlu_cfg_destroy(config)
        return None if failed else disk


@pytest.fixture(scope="module")
def xlu() -> Iterator[Xlu]:
    try:
        library = Xlu()
    except OSError:
        pytest.skip(f"{LIBRARY} (Debian's libxenmisc4.17) is not installed")
    yield library
    library.close()


@settings(max_examples=500)
@given(st.lists(PIECES, max_size=10).map("".join))
def test_the_grammar_is_libxlutils(xlu: Xlu, text: str) -> None:
    text += "\n"  # libxlutil wants a newline after a final comment
    accepted, string, number = xlu.parse(text)
    try:
        setting = parse_text(text, "f").get("a")
    except ConfigError:
        assert not accepted
        return
    assert accepted
    text_of_a = setting.value.text if setting and isinstance(setting.value, Atom) else None
    assert (None if text_of_a is None else text_of_a.encode()) == string
    no_number = text_of_a is None or setting is None or setting.append
    assert (None if no_number else parse_integer(str(text_of_a))) == number


@settings(max_examples=500)
@given(DISKS)
def test_disk_strings_mean_what_libxlutil_takes_them_for(xlu: Xlu, text: str) -> None:
    """A string that both accept means the same; xenpy accepts fewer, since it wants a real vdev and a target."""
    theirs = xlu.disk(text)
    try:
        ours = parse_disk(Atom(text, Position("f", 1, 1)))
    except ConfigError:
        return
    assert theirs is not None
    assert (theirs.pdev_path or b"").decode() == ours.target or ours.format == "empty"
    assert (theirs.vdev or b"").decode() == ours.vdev
    assert theirs.format == FORMATS[ours.format]
    assert (theirs.script or b"").decode() == (ours.script or "")
    assert (bool(theirs.readwrite), bool(theirs.is_cdrom)) == (ours.writable, ours.cdrom)
    assert theirs.direct_io_safe == ours.direct_io_safe
    assert {None: 0, True: 1, False: -1}[ours.discard] == theirs.discard_enable
