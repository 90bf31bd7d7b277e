"""An ELF file that holds a kernel's symbols and nothing else, for debuggers.

Ref: System V ABI, chapter 4; elf(5)
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from xenpy.builder.kallsyms import Symbol

_HEADER: Final = Struct("<16sHHIQQQIHHHHHH")
_SECTION: Final = Struct("<IIQQQQIIQQ")
_SYMBOL: Final = Struct("<IBBHQQ")
_IDENT: Final = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
_ET_EXEC, _EM_X86_64, _EV_CURRENT = 2, 62, 1
_SHT_SYMTAB, _SHT_STRTAB, _SHT_NOBITS = 2, 3, 8
_SHF_WRITE, _SHF_ALLOC, _SHF_EXECINSTR = 1, 2, 4
_SHN_ABS: Final = 0xFFF1
_STT_OBJECT, _STT_FUNC = 1, 2
_STB_LOCAL, _STB_GLOBAL = 0, 1
_TEXT, _DATA = 1, 2
"""The sections that symbols are in, by number."""
_NAMES: Final = b"\0.text\0.data\0.symtab\0.strtab\0.shstrtab\0"
_KERNEL: Final = 0xFFFF_FFFF_8000_0000


def symbol_file(symbols: Iterable[Symbol]) -> bytes:
    """Return an ELF file with these symbols: functions where they are code, which ends where the next symbol begins."""
    ordered = [symbol for symbol in symbols if symbol.gva >= _KERNEL]
    ends = [symbol.gva for symbol in ordered[1:]] + [ordered[-1].gva] if ordered else []
    strings, table = bytearray(b"\0"), []
    for symbol, end in zip(ordered, ends, strict=True):
        code = symbol.type in "tTwW"
        bind = _STB_GLOBAL if symbol.type.isupper() else _STB_LOCAL
        kind = _STT_FUNC if code else _STT_OBJECT
        section = _SHN_ABS if symbol.type in "aA" else _TEXT if code else _DATA
        table.append((bind, _SYMBOL.pack(len(strings), bind << 4 | kind, 0, section, symbol.gva, end - symbol.gva)))
        strings += symbol.name.encode() + b"\0"
    table.sort(key=lambda row: row[0])  # local ones come first
    locals_ = sum(bind == _STB_LOCAL for bind, _ in table)
    symtab = bytes(_SYMBOL.size) + b"".join(row for _, row in table)
    low = ordered[0].gva if ordered else _KERNEL
    span = (ordered[-1].gva - low if ordered else 0) + 1
    at_symtab = _HEADER.size
    at_strings = at_symtab + len(symtab)
    at_names = at_strings + len(strings)
    at_sections = -(-(at_names + len(_NAMES)) // 8) * 8
    find = _NAMES.index
    sections = (
        bytes(_SECTION.size),
        _SECTION.pack(find(b".text\0"), _SHT_NOBITS, _SHF_ALLOC | _SHF_EXECINSTR, low, 0, span, 0, 0, 1, 0),
        _SECTION.pack(find(b".data\0"), _SHT_NOBITS, _SHF_ALLOC | _SHF_WRITE, low, 0, span, 0, 0, 1, 0),
        _SECTION.pack(find(b".symtab\0"), _SHT_SYMTAB, 0, 0, at_symtab, len(symtab), 4, locals_ + 1, 8, _SYMBOL.size),
        _SECTION.pack(find(b".strtab\0"), _SHT_STRTAB, 0, 0, at_strings, len(strings), 0, 0, 1, 0),
        _SECTION.pack(find(b".shstrtab\0"), _SHT_STRTAB, 0, 0, at_names, len(_NAMES), 0, 0, 1, 0),
    )
    header = _HEADER.pack(
        _IDENT, _ET_EXEC, _EM_X86_64, _EV_CURRENT, 0, 0, at_sections, 0, _HEADER.size, 0, 0, _SECTION.size, len(sections),
        len(sections) - 1,
    )  # fmt: skip
    body = header + symtab + bytes(strings) + _NAMES
    return body.ljust(at_sections, b"\0") + b"".join(sections)
