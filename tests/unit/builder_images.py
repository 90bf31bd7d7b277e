"""Small ELF files and bzImages, built from Python: what the loaders are tested on."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

PT_LOAD, PT_NOTE = 1, 4
SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_NOTE = 1, 2, 3, 7
SHF_ALLOC, SHF_EXECINSTR = 2, 4
ENTRY, VIRT_BASE, XEN_VERSION, GUEST_OS, LOADER, FEATURES, SUPPORTED, PHYS32_ENTRY, PHYS32_RELOC = (
    1,
    3,
    5,
    6,
    8,
    10,
    17,
    18,
    19,
)

KERNEL_AT = 0x200000
CODE = bytes(range(256)) * 8


@dataclass
class Load:
    """A PT_LOAD segment."""

    paddr: int
    data: bytes = CODE
    memsz: int | None = None
    vaddr: int | None = None
    flags: int = 7


@dataclass
class Section:
    """A section whose contents lie in no segment unless `inside` (segment number, offset in it) says so."""

    name: str
    type: int
    data: bytes = b""
    flags: int = 0
    link: int = 0
    inside: tuple[int, int, int] | None = None  # segment, offset, size


def note(kind: int, desc: bytes | int, owner: bytes = b"Xen\0") -> bytes:
    if isinstance(desc, int):
        desc = desc.to_bytes(8, "little")
    return (
        struct.pack("<III", len(owner), len(desc), kind)
        + owner.ljust(-len(owner) % 4 + len(owner), b"\0")
        + desc
        + bytes(-len(desc) % 4)
    )


def elf(
    loads: list[Load],
    notes: bytes = b"",
    *,
    bits: int = 64,
    machine: int = 62,
    sections: list[Section] | None = None,
    kind: int = 2,
) -> bytes:
    """Return an ELF executable; `notes` go to a PT_NOTE segment."""
    header_size, segment_size, section_size = (64, 56, 64) if bits == 64 else (52, 32, 40)
    sections = list(sections or [])
    if sections:
        names = b"\0" + b"".join(each.name.encode() + b"\0" for each in sections) + b".shstrtab\0"
        sections.append(Section(".shstrtab", SHT_STRTAB, names))
    segments: list[tuple[int, ...]] = []  # type, flags, offset, vaddr, paddr, filesz, memsz
    body = bytearray()
    start = header_size + segment_size * (len(loads) + bool(notes))
    for load in loads:
        offset, memsz = start + len(body), len(load.data) if load.memsz is None else load.memsz
        vaddr = load.paddr if load.vaddr is None else load.vaddr
        segments.append((PT_LOAD, load.flags, offset, vaddr, load.paddr, len(load.data), memsz))
        body += load.data + bytes(-len(load.data) % 16)
    if notes:
        segments.append((PT_NOTE, 4, start + len(body), 0, 0, len(notes), len(notes)))
        body += notes + bytes(-len(notes) % 16)
    rows = [(0,) * 7]
    for section in sections:
        name = names.index(b"\0" + section.name.encode() + b"\0") + 1
        offset, size, vaddr = start + len(body), len(section.data), 0
        if section.inside is not None:
            index, within, size = section.inside
            offset, vaddr = segments[index][2] + within, segments[index][3] + within
        rows.append((name, section.type, section.flags, vaddr, offset, size, section.link))
        body += section.data + bytes(-len(section.data) % 16)
    shoff = start + len(body) if sections else 0
    ident = b"\x7fELF" + bytes([bits // 32, 1, 1]) + bytes(9)
    head = struct.pack(
        "<HHIQQQIHHHHHH" if bits == 64 else "<HHIIIIIHHHHHH",
        kind, machine, 1, loads[0].paddr if loads else 0, header_size, shoff, 0, header_size, segment_size, len(segments),
        section_size, len(rows) if sections else 0, len(rows) - 1 if sections else 0,
    )  # fmt: skip
    if bits == 64:
        table = b"".join(struct.pack("<II6Q", *segment, 4096) for segment in segments)
        section_table = b"".join(struct.pack("<IIQQQQIIQQ", *row, 0, 1, 0) for row in rows)
    else:
        table = b"".join(struct.pack("<8I", s[0], s[2], s[3], s[4], s[5], s[6], s[1], 4096) for s in segments)
        section_table = b"".join(struct.pack("<10I", *row, 0, 1, 0) for row in rows)
    return ident + head + table + bytes(body) + (section_table if sections else b"")


def symbols(values: dict[str, int], *, bits: int = 64, strtab: int) -> list[Section]:
    """Return .symtab and .strtab; `strtab` is the section number that .strtab will have."""
    names = b"\0" + b"".join(name.encode() + b"\0" for name in values)
    rows = [bytes(24 if bits == 64 else 16)]
    for name, value in values.items():
        at = names.index(b"\0" + name.encode() + b"\0") + 1
        row = (
            struct.pack("<IBBHQQ", at, 2, 0, 1, value, 8)
            if bits == 64
            else struct.pack("<IIIBBH", at, value, 8, 2, 0, 1)
        )
        rows.append(row)
    return [Section(".symtab", SHT_SYMTAB, b"".join(rows), link=strtab), Section(".strtab", SHT_STRTAB, names)]


def pvh_elf(
    code: bytes = CODE, *, at: int = KERNEL_AT, extra: bytes = b"", entry: int | None = None, **options: Any
) -> bytes:
    """Return a PVH kernel of one segment."""
    notes = note(PHYS32_ENTRY, at if entry is None else entry) + extra
    return elf([Load(at, code, memsz=len(code) + 0x1000)], notes, **options)


def bzimage(payload: bytes, *, version: int = 0x20F, cmdline_size: int = 2047, trailer: int | None = None) -> bytes:
    """Return a bzImage around a payload, `trailer` being the unpacked size to append to it, if any."""
    if trailer is not None:
        payload += struct.pack("<I", trailer)
    setup_sects, payload_offset = 4, 0x80
    image = bytearray((setup_sects + 1) * 512 + payload_offset)
    image[0x1F1] = setup_sects
    image[0x1FE:0x200] = b"\x55\xaa"
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, version)
    struct.pack_into("<I", image, 0x238, cmdline_size)
    struct.pack_into("<II", image, 0x248, payload_offset, len(payload))
    return bytes(image + payload + bytes(64))
