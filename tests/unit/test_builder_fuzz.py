"""No bytes make a loader fail in any other way than by telling the user."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import tempfile
from pathlib import Path

import pytest
from builder_images import PHYS32_ENTRY as ENTRY_NOTE
from builder_images import PHYS32_RELOC, SHT_NOTE, Load, Section, bzimage, elf, note, pvh_elf, symbols
from hypothesis import example, given, settings
from hypothesis import strategies as st

from xenpy.builder import compression, kernel
from xenpy.builder.kernel import load_kernel
from xenpy.builder.patch import apply, find_hypercall_sites
from xenpy.builder.pvh import build_pvh
from xenpy.errors import ConfigError
from xenpy.memory import GuestMemory

CODE = b"\x0f\x01\xd9\xc3\x0f\x01\xc1\xc3" + bytes(120)
SMALL = pvh_elf(CODE, extra=note(PHYS32_RELOC, struct.pack("<III", 0x1000, 0x100000, 0xFFFFFF)))
NOTES_IN_A_SECTION = [
    Section(".notes", SHT_NOTE, note(ENTRY_NOTE, 0x200000)),
    *symbols({"xen_hypercall_amd": 0x200000}, strtab=3),
]
PLAIN = [
    SMALL,
    pvh_elf(CODE, bits=32, machine=3),
    elf([Load(0x200000, CODE)], sections=NOTES_IN_A_SECTION),
    elf([Load(0x200000, CODE)], sections=[Section("__xen_guest", 1, b"VIRT_BASE=0xC0000000,LOADER=generic\0")]),
]


def lz4_legacy(data: bytes) -> bytes:
    lz4_block = pytest.importorskip("lz4.block")
    block = lz4_block.compress(data, store_size=False)
    return bytes.fromhex("02214c18") + struct.pack("<I", len(block)) + block


def sized(payload: bytes) -> bytes:
    return bzimage(payload, trailer=len(SMALL))


PACKED = [
    bzimage(gzip.compress(SMALL)),
    sized(bz2.compress(SMALL)),
    sized(lzma.compress(SMALL)),
    sized(lzma.compress(SMALL, format=lzma.FORMAT_ALONE)),
    sized(lz4_legacy(SMALL)),
    gzip.compress(SMALL),
]
SEEDS = PLAIN + PACKED


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setenv("XENPY_CACHE", "/dev/null")
    monkeypatch.setattr(kernel, "UNPACKED_MAX", 4 << 20)


def use(data: bytes) -> None:
    """Load, build and patch, as a domain does; the one exception is ConfigError, and it names the file."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "kernel"
        path.write_bytes(data)
        memory = GuestMemory()
        message = ""
        try:
            with load_kernel(path) as image:
                assert image.is_pv_capable == (image.pv_refusal is None)
                start = build_pvh(memory, image, size=16 << 20, cmdline="x")
                apply(memory, find_hypercall_sites(image), 0xE5, moved=start.load_offset)
        except ConfigError as error:
            message = str(error)
        memory.close()
        assert not message or str(path) in message


PROFILE = settings(max_examples=150)


@pytest.mark.parametrize("seed", range(len(PLAIN)))
def test_seeds_are_kernels(seed, tmp_path):
    (tmp_path / "kernel").write_bytes(PLAIN[seed])
    with load_kernel(tmp_path / "kernel") as image:
        assert image.notes.source


@pytest.mark.parametrize("seed", range(len(PACKED)))
def test_packed_seeds_are_kernels(seed, tmp_path):
    (tmp_path / "kernel").write_bytes(PACKED[seed])
    with load_kernel(tmp_path / "kernel") as image:
        assert image.data[:] == SMALL


@PROFILE
@given(st.binary(max_size=2000))
@example(b"\x7fELF")
@example(b"\x1f\x8b")
def test_any_bytes(data):
    use(data)


@PROFILE
@given(
    st.sampled_from([form.magic for form in compression.FORMATS] + [b"\x7fELF\2\1", b"\x7fELF\1\1"]),
    st.binary(max_size=400),
)
def test_any_bytes_behind_a_magic(magic, data):
    use(magic + data)
    use(bzimage(magic + data))


@PROFILE
@given(st.sampled_from(SEEDS), st.floats(0, 1))
def test_truncated(image, part):
    use(image[: int(len(image) * part)])


INTERESTING = st.sampled_from([0, 1, 0x7F, 0x80, 0xFF])


@settings(PROFILE, max_examples=400)
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 1 << 20), INTERESTING), min_size=1, max_size=6))
def test_mutated(image, changes):
    mutated = bytearray(image)
    for position, value in changes:
        mutated[position % len(mutated)] = value
    use(bytes(mutated))


@settings(PROFILE, max_examples=400)
@given(
    st.sampled_from(SEEDS),
    st.integers(0, 0x280),
    st.sampled_from([2, 4, 8]),
    st.integers(0, (1 << 64) - 1) | INTERESTING,
)
def test_mutated_fields(image, offset, size, value):
    mutated = bytearray(image)
    mutated[offset : offset + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
    use(bytes(mutated))


@PROFILE
@given(st.binary(max_size=300))
def test_any_notes(notes):
    use(elf([Load(0x200000, CODE)], notes))


@PROFILE
@given(st.lists(st.tuples(st.integers(0, 20), st.binary(max_size=20)), max_size=8))
def test_any_xen_notes(notes):
    use(elf([Load(0x200000, CODE)], b"".join(note(kind, desc) for kind, desc in notes)))


ADDRESSES = st.integers(0, (1 << 64) - 1) | st.integers(0, 20 << 20)
SIZES = st.integers(0, (1 << 64) - 1) | st.integers(0, 1 << 20)


@PROFILE
@given(st.lists(st.tuples(ADDRESSES, SIZES), max_size=5))
def test_any_segments(segments):
    use(elf([Load(paddr, CODE[:memsz], memsz=memsz) for paddr, memsz in segments], note(ENTRY_NOTE, 0x200000)))
