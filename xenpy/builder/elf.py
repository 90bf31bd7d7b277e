"""ELF files as far as a loader needs them: segments, sections, notes and a symbol by name.

An own reader rather than pyelftools: importing that takes longer than starting a small guest, and it mislabels Xen's
notes.

Ref: System V gABI chapters 4 and 5 (elf.h)
"""

from __future__ import annotations

import mmap
import struct
from functools import cached_property
from typing import TYPE_CHECKING, Final, NamedTuple

from xenpy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

Buffer = bytes | mmap.mmap
"""An image in memory: both can be sliced (into bytes), searched and unpacked without a copy of the whole."""

ELF_MAGIC: Final = b"\x7fELF"
ELFCLASS32: Final = 1
ELFCLASS64: Final = 2
ELFDATA2LSB: Final = 1
ET_EXEC: Final = 2
ET_DYN: Final = 3
EM_386: Final = 3
EM_X86_64: Final = 62
PT_LOAD: Final = 1
PT_NOTE: Final = 4
PF_X: Final = 1
SHT_SYMTAB: Final = 2
SHT_NOTE: Final = 7
SHT_NOBITS: Final = 8
SHF_EXECINSTR: Final = 4
PN_XNUM: Final = 0xFFFF

_EI_CLASS: Final = 4
_EI_DATA: Final = 5
_EI_NIDENT: Final = 16
_NOTE_HEADER: Final = struct.Struct("<III")


class _Layout(NamedTuple):
    """How one ELF class spells its structures."""

    header: struct.Struct
    segment: struct.Struct
    segment_order: tuple[int, ...]
    """Where type, flags, offset, vaddr, paddr, filesz, memsz stand in a program header."""
    section: struct.Struct
    symbol: struct.Struct
    symbol_order: tuple[int, int, int]
    """Where name, value, size stand in a symbol."""


_LAYOUTS: Final = {
    ELFCLASS32: _Layout(
        struct.Struct("<HHIIIIIHHHHHH"),
        struct.Struct("<8I"),
        (0, 6, 1, 2, 3, 4, 5),
        struct.Struct("<10I"),
        struct.Struct("<IIIBBH"),
        (0, 1, 2),
    ),
    ELFCLASS64: _Layout(
        struct.Struct("<HHIQQQIHHHHHH"),
        struct.Struct("<II6Q"),
        (0, 1, 2, 3, 4, 5, 6),
        struct.Struct("<IIQQQQIIQQ"),
        struct.Struct("<IBBHQQ"),
        (0, 4, 5),
    ),
}
_MACHINES: Final = {(ELFCLASS32, EM_386), (ELFCLASS32, EM_X86_64), (ELFCLASS64, EM_X86_64)}
"""Xen's own images are EM_X86_64 in 32-bit containers."""


class Segment(NamedTuple):
    """A program header; addresses and sizes in bytes."""

    number: int
    type: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int

    def __str__(self) -> str:
        return f"segment {self.number} (paddr {self.paddr:#x}, {self.memsz:#x} bytes)"


class Section(NamedTuple):
    """A section header; addresses and sizes in bytes."""

    name: str
    type: int
    flags: int
    vaddr: int
    offset: int
    size: int
    link: int


class Symbol(NamedTuple):
    """A symbol's value and size in bytes."""

    value: int
    size: int


class Elf:
    """A little-endian x86 ELF executable. Raises ConfigError, naming `name`, for anything malformed."""

    def __init__(self, name: str, data: Buffer) -> None:
        self.name = name
        self.data = data
        self.size = len(data)
        ident = data[:_EI_NIDENT]
        if ident[:4] != ELF_MAGIC:
            raise ConfigError(f"{name}: no ELF file: it begins with {ident[:4].hex(' ') or 'nothing'}")
        if len(ident) < _EI_NIDENT or ident[_EI_DATA] != ELFDATA2LSB or ident[_EI_CLASS] not in _LAYOUTS:
            raise ConfigError(f"{name}: not a little-endian ELF file of 32 or 64 bits: no x86 kernel")
        self.elf_class = ident[_EI_CLASS]
        self._layout = layout = _LAYOUTS[self.elf_class]
        header = self._unpack(layout.header, _EI_NIDENT, "header")
        self.type, self.machine, _, self.entry = header[:4]
        phoff, self._shoff, _, _, phentsize, phnum, self._shentsize, self._shnum, self._shstrndx = header[4:]
        if (self.elf_class, self.machine) not in _MACHINES:
            raise ConfigError(
                f"{name}: ELF machine {self.machine} in a {self.bits}-bit file; "
                f"{EM_X86_64} (x86-64) or, with 32 bits, {EM_386} (i386) would be right"
            )
        if self.type not in (ET_EXEC, ET_DYN):
            raise ConfigError(f"{name}: ELF type {self.type} is no executable; link it ({ET_EXEC} would be right)")
        if phnum and (phnum == PN_XNUM or phentsize < layout.segment.size):
            raise ConfigError(
                f"{name}: {phnum} program headers of {phentsize} bytes; of {layout.segment.size} would be right"
            )
        self.segments = tuple(self._read_segments(phoff, phentsize, phnum))

    @property
    def bits(self) -> int:
        """Return 32 or 64, by the file's class."""
        return 32 * self.elf_class

    @property
    def loadable(self) -> tuple[Segment, ...]:
        """Return the PT_LOAD segments that occupy memory."""
        return tuple(segment for segment in self.segments if segment.type == PT_LOAD and segment.memsz)

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """Return the sections, the null one included; none if the file has no section table."""
        if not self._shoff or not self._shnum:
            return ()
        form = self._layout.section
        if self._shentsize < form.size:
            raise ConfigError(f"{self.name}: section headers of {self._shentsize} bytes; {form.size} would be right")
        rows = [
            self._unpack(form, self._shoff + index * self._shentsize, f"section header {index}")
            for index in range(self._shnum)
        ]
        strings = b""
        if self._shstrndx < len(rows):
            offset, size = rows[self._shstrndx][4:6]
            strings = self._slice(offset, size, "section name table")
        return tuple(
            Section(_string_at(strings, row[0]), row[1], row[2], row[3], row[4], row[5], row[6]) for row in rows
        )

    def section(self, name: str) -> Section | None:
        """Return the first section of that name, or None."""
        return next((section for section in self.sections if section.name == name), None)

    def contents(self, section: Section) -> bytes:
        """Return a copy of a section's bytes; empty for NOBITS."""
        if section.type == SHT_NOBITS:
            return b""
        return self._slice(section.offset, section.size, f"section {section.name}")

    def segment_notes(self) -> Iterator[tuple[bytes, int, bytes]]:
        """Yield (name, type, description) of every note in the PT_NOTE segments."""
        for segment in self.segments:
            if segment.type == PT_NOTE:
                where = f"segment {segment.number} (PT_NOTE)"
                yield from self._notes(self._slice(segment.offset, segment.filesz, where), where)

    def section_notes(self) -> Iterator[tuple[bytes, int, bytes]]:
        """Yield (name, type, description) of every note in the SHT_NOTE sections."""
        for section in self.sections:
            if section.type == SHT_NOTE:
                yield from self._notes(self.contents(section), f"section {section.name}")

    def symbol(self, name: str) -> Symbol | None:
        """Return a defined symbol of the symbol table, or None if the file lacks it or is stripped.

        The table is searched for the name's offset rather than unpacked: a kernel has some 200,000 symbols.
        """
        form, (name_at, value_at, size_at) = self._layout.symbol, self._layout.symbol_order
        for table in self.sections:
            if table.type != SHT_SYMTAB or table.link >= len(self.sections):
                continue
            position = self.contents(self.sections[table.link]).find(b"\0" + name.encode() + b"\0")
            if position < 0:
                continue
            symbols = self.contents(table)
            needle = struct.pack("<I", position + 1)
            at = symbols.find(needle)
            while at >= 0:
                if at % form.size == 0 and at + form.size <= len(symbols):
                    row = form.unpack_from(symbols, at)
                    if row[name_at] == position + 1 and row[value_at]:
                        return Symbol(row[value_at], row[size_at])
                at = symbols.find(needle, at + 1)
        return None

    # -- internals ----------------------------------------------------------------------------------------------------

    def _read_segments(self, offset: int, entry_size: int, count: int) -> Iterator[Segment]:
        for index in range(count):
            row = self._unpack(self._layout.segment, offset + index * entry_size, f"program header {index}")
            segment = Segment(index, *(row[at] for at in self._layout.segment_order))
            if segment.type in (PT_LOAD, PT_NOTE) and segment.offset + segment.filesz > self.size:
                raise ConfigError(
                    f"{self.name}: segment {index} needs bytes up to {segment.offset + segment.filesz:#x} "
                    f"of a file of {self.size:#x}: truncated?"
                )
            if segment.type == PT_LOAD and segment.filesz > segment.memsz:
                raise ConfigError(
                    f"{self.name}: segment {index} has {segment.filesz:#x} bytes in the file for {segment.memsz:#x} "
                    "in memory; not more would be right"
                )
            yield segment

    def _notes(self, data: bytes, where: str) -> Iterator[tuple[bytes, int, bytes]]:
        # Notes are aligned to 4 bytes even in 64-bit files; the one kind aligned to 8 is so by its sizes.
        offset = 0
        while offset + _NOTE_HEADER.size <= len(data):
            name_size, size, kind = _NOTE_HEADER.unpack_from(data, offset)
            name_at = offset + _NOTE_HEADER.size
            desc_at = name_at + _round_up4(name_size)
            if desc_at + size > len(data):
                if self.elf_class == ELFCLASS32:
                    return  # GRUB's 32-bit PV image is so: those before say what it is
                raise ConfigError(f"{self.name}: the note at {offset:#x} of {where} ends beyond it: truncated?")
            yield data[name_at : name_at + name_size].rstrip(b"\0"), kind, data[desc_at : desc_at + size]
            offset = desc_at + _round_up4(size)

    def _unpack(self, form: struct.Struct, offset: int, what: str) -> tuple[int, ...]:
        if offset + form.size > self.size:
            raise ConfigError(
                f"{self.name}: {what} at {offset:#x} is beyond the file ({self.size:#x} bytes): truncated?"
            )
        return form.unpack_from(self.data, offset)

    def _slice(self, offset: int, size: int, what: str) -> bytes:
        if offset + size > self.size:
            raise ConfigError(f"{self.name}: {what} ends beyond the file's {self.size:#x} bytes: truncated?")
        return self.data[offset : offset + size]


def _round_up4(size: int) -> int:
    return (size + 3) & ~3


def _string_at(table: bytes, offset: int) -> str:
    end = table.find(b"\0", offset)
    return table[offset : end if end >= 0 else len(table)].decode("ascii", "replace")
