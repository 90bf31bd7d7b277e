from __future__ import annotations

import struct

import pytest
from builder_images import (
    ENTRY,
    FEATURES,
    GUEST_OS,
    LOADER,
    PHYS32_ENTRY,
    PHYS32_RELOC,
    SHT_NOTE,
    SHT_PROGBITS,
    SUPPORTED,
    VIRT_BASE,
    XEN_VERSION,
    Load,
    Section,
    elf,
    note,
    pvh_elf,
    symbols,
)

from xenpy.builder.elf import Elf
from xenpy.builder.kernel import load_kernel
from xenpy.builder.notes import Phys32Reloc, XenNotes, read_notes
from xenpy.errors import ConfigError

PV_NOTES = (
    note(ENTRY, 0xFFFFFFFF81000000)
    + note(VIRT_BASE, 0xFFFFFFFF80000000)
    + note(XEN_VERSION, b"xen-3.0\0")
    + note(GUEST_OS, b"linux\0")
    + note(LOADER, b"generic\0")
)


def notes_of(image: bytes) -> XenNotes:
    return read_notes(Elf("kernel", image))


def image_of(tmp_path, data: bytes):
    path = tmp_path / "kernel"
    path.write_bytes(data)
    return load_kernel(path)


@pytest.mark.parametrize(("bits", "machine"), [(64, 62), (32, 62), (32, 3)])
@pytest.mark.parametrize("size", [4, 8])
@pytest.mark.parametrize("value", [0, 0x1000850])
def test_entry_note_of_either_size_in_every_class(bits, machine, size, value):
    image = elf([Load(0)], note(PHYS32_ENTRY, value.to_bytes(size, "little")), bits=bits, machine=machine)
    notes = notes_of(image)
    assert (notes.source, notes.phys32_entry) == ("PT_NOTE", value)


@pytest.mark.parametrize("bits", [32, 64])
def test_notes_only_in_a_section(bits):
    other = note(3, b"build-id", owner=b"GNU\0")
    sections = [Section(".note.Xen", SHT_NOTE, note(PHYS32_ENTRY, 0x100000))]
    notes = notes_of(elf([Load(0x100000)], other, bits=bits, sections=sections))
    assert (notes.source, notes.phys32_entry) == ("SHT_NOTE", 0x100000)


def test_segment_notes_win_over_section_notes():
    sections = [Section(".note.Xen", SHT_NOTE, note(PHYS32_ENTRY, 1))]
    assert notes_of(elf([Load(0)], note(PHYS32_ENTRY, 2), sections=sections)).phys32_entry == 2


def test_notes_of_others_with_xens_numbers_are_not_xens():
    notes = notes_of(elf([Load(0)], note(PHYS32_ENTRY, 1, owner=b"GNU\0")))
    assert (notes.source, notes.phys32_entry) == ("", None)


def test_legacy_section():
    text = (
        b"GUEST_OS=linux,GUEST_VER=2.6,XEN_VER=xen-3.0,VIRT_BASE=0xC0000000,HYPERCALL_PAGE=0x102,"
        b"FEATURES=!writable_page_tables|pae_pgdir_above_4gb,LOADER=generic,PAE=yes,BSD_SYMTAB\0"
    )
    notes = notes_of(elf([Load(0x100000)], bits=32, sections=[Section("__xen_guest", SHT_PROGBITS, text)]))
    assert (notes.source, notes.guest_os, notes.loader, notes.xen_version) == (
        "__xen_guest",
        "linux",
        "generic",
        "xen-3.0",
    )
    assert (notes.virt_base, notes.paddr_offset, notes.hypercall_page) == (0xC0000000, 0xC0000000, 0xC0102000)
    assert (notes.required_features, notes.supported_features, notes.bsd_symtab) == (1, 0b10001, True)


@pytest.mark.parametrize("text", [b"VIRT_BASE=here", b"VIRT_BASE=-1", b"VIRT_BASE=0x10000000000000000"])
def test_legacy_number_that_is_none(text):
    with pytest.raises(ConfigError, match="VIRT_BASE"):
        notes_of(elf([Load(0)], sections=[Section("__xen_guest", SHT_PROGBITS, text)]))


@pytest.mark.parametrize("end", [b"", b"\0"])
def test_features_with_and_without_nul_join_the_bitmap(end):
    notes = notes_of(elf([Load(0)], note(FEATURES, b"!writable_page_tables|nonsense" + end) + note(SUPPORTED, 0x8800)))
    assert (notes.required_features, notes.supported_features) == (1, 0x8801)
    assert notes.supports("linux_rsdp_unrestricted")
    assert not notes.supports("hvm_callback_vector")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([0x1000], Phys32Reloc(0x1000, 0, 0xFFFFFFFF)),
        ([0x1000, 0x2000], Phys32Reloc(0x1000, 0x2000, 0xFFFFFFFF)),
        ([0x200000, 0x1000000, 0x3FFFFFFF], Phys32Reloc(0x200000, 0x1000000, 0x3FFFFFFF)),
    ],
)
def test_relocation_note_with_defaults(words, expected):
    assert notes_of(elf([Load(0)], note(PHYS32_RELOC, struct.pack(f"<{len(words)}I", *words)))).phys32_reloc == expected


@pytest.mark.parametrize(
    ("kind", "desc", "name"),
    [
        (PHYS32_ENTRY, b"\1\2", "PHYS32_ENTRY"),
        (PHYS32_RELOC, b"\1\2", "PHYS32_RELOC"),
        (PHYS32_RELOC, bytes(4), "power of two"),
        (PHYS32_RELOC, struct.pack("<I", 0x3000), "power of two"),
        (13, b"\1", "L1_MFN_VALID"),
    ],
)
def test_malformed_notes_are_named(kind, desc, name):
    with pytest.raises(ConfigError, match=f"^kernel: .*{name}"):
        notes_of(elf([Load(0)], note(kind, desc)))


def test_pv_notes(tmp_path):
    l1_valid = note(13, struct.pack("<QQ", 1, 1))
    image = image_of(tmp_path, elf([Load(0x1000000)], PV_NOTES + l1_valid + note(15, 1 << 39) + note(16, b"\1\0\0\0")))
    notes = image.notes
    assert (notes.entry, notes.virt_base) == (0xFFFFFFFF81000000, 0xFFFFFFFF80000000)
    assert (notes.l1_mfn_valid, notes.init_p2m, notes.mod_start_pfn) == (((1, 1),), 1 << 39, True)
    assert image.is_pv_capable
    assert not image.is_pvh_capable
    assert image.pvh_refusal is not None
    assert "PHYS32_ENTRY" in image.pvh_refusal
    assert 'type="pv"' in image.pvh_refusal


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (elf([Load(0)]), "no Xen ELF notes"),
        (elf([Load(0)], PV_NOTES, bits=32, machine=3), "32-bit"),
        (elf([Load(0)], note(ENTRY, 0) + note(XEN_VERSION, b"xen-3.0")), "LOADER"),
        (elf([Load(0)], note(ENTRY, 0) + note(LOADER, b"generic") + note(XEN_VERSION, b"xen-2.0")), "XEN_VERSION"),
        (elf([Load(0)], note(XEN_VERSION, b"xen-3.0") + note(LOADER, b"generic")), "ENTRY"),
        (pvh_elf(), 'type="pvh"'),
    ],
)
def test_why_it_is_no_pv_kernel(tmp_path, data, reason):
    refusal = image_of(tmp_path, data).pv_refusal
    assert refusal is not None
    assert reason in refusal


@pytest.mark.parametrize("bits", [32, 64])
def test_symbols_are_found_by_whole_name(bits):
    table = symbols({"xen_hypercall": 0x1000, "xen_hypercall_amd": 0x2000, "amd": 0x3000}, bits=bits, strtab=2)
    image = Elf("kernel", elf([Load(0)], bits=bits, sections=table))
    assert {
        name: symbol.value for name in ("xen_hypercall", "xen_hypercall_amd", "amd") if (symbol := image.symbol(name))
    } == {
        "xen_hypercall": 0x1000,
        "xen_hypercall_amd": 0x2000,
        "amd": 0x3000,
    }
    assert image.symbol("hypercall") is None


def patched(data: bytes, offset: int, value: bytes) -> bytes:
    return data[:offset] + value + data[offset + len(value) :]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no ELF file"),
        (b"\x7fELF", "not a little-endian ELF"),
        (pvh_elf()[:60], "header .*truncated"),
        (pvh_elf()[:100], "program header 0 .*truncated"),
        (pvh_elf()[:1000], "segment 0 needs bytes up to .*truncated"),
        (patched(pvh_elf(), 5, b"\2"), "not a little-endian ELF"),
        (pvh_elf(machine=40), "machine 40"),
        (pvh_elf(kind=1), "type 1"),
        (elf([Load(0, memsz=1)]), "not more would be right"),
        (patched(pvh_elf(), 0x36, b"\x08\0"), "program headers of 8 bytes"),
        (elf([Load(0)], note(1, 0)[:-4] + b"\xff"), "ends beyond it"),
    ],
)
def test_malformed_files_are_described(data, reason):
    with pytest.raises(ConfigError, match=f"^kernel: .*{reason}"):
        notes_of(data)
