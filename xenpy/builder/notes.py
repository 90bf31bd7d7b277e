"""Xen's ELF notes, from wherever a kernel keeps them.

Ref: xen/include/public/elfnote.h
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from xenpy.abi.elfnote import (
    FEATURE_NAMES,
    LEGACY_SECTION,
    NOTE_NAME,
    PHYS32_RELOC_ALIGN,
    PHYS32_RELOC_MAX,
    PHYS32_RELOC_MIN,
    XEN_ELFNOTE,
)
from xenpy.errors import ConfigError
from xenpy.memory import PAGE_SHIFT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from xenpy.builder.elf import Elf


class Phys32Reloc(NamedTuple):
    """Where a PVH kernel lets itself be moved: a start aligned to `align`, in [`min`, `max`], both inclusive."""

    align: int = PHYS32_RELOC_ALIGN
    min: int = PHYS32_RELOC_MIN
    max: int = PHYS32_RELOC_MAX


class XenNotes:
    """What a kernel says of itself; None or empty where it says nothing. Addresses are virtual but for `phys32_*`.

    A plain class: the dataclass of so many fields would take two milliseconds of every start.
    """

    source: str = ""
    """"PT_NOTE", "SHT_NOTE" or "__xen_guest"; empty if the kernel has no notes of Xen's."""
    entry: int | None = None
    hypercall_page: int | None = None
    virt_base: int | None = None
    paddr_offset: int | None = None
    xen_version: str | None = None
    guest_os: str | None = None
    guest_version: str | None = None
    loader: str | None = None
    pae_mode: str | None = None
    supported_features: int = 0
    """Bits XENFEAT_*, from both the string and the numeric note."""
    required_features: int = 0
    bsd_symtab: bool = False
    hv_start_low: int | None = None
    l1_mfn_valid: tuple[tuple[int, int], ...] = ()
    """(mask, value) pairs."""
    suspend_cancel: bool = False
    init_p2m: int | None = None
    mod_start_pfn: bool = False
    phys32_entry: int | None = None
    phys32_reloc: Phys32Reloc | None = None

    def supports(self, feature: str) -> bool:
        """Tell whether the kernel names a feature, spelled as in features.h without XENFEAT_."""
        return bool((self.supported_features | self.required_features) >> FEATURE_NAMES.index(feature) & 1)


def read_notes(elf: Elf) -> XenNotes:
    """Return the Xen notes of PT_NOTE segments, else of SHT_NOTE sections, else of a `__xen_guest` section.

    Raises ConfigError for a note that is malformed.
    """
    for source, found in (("PT_NOTE", elf.segment_notes), ("SHT_NOTE", elf.section_notes)):
        notes = XenNotes()
        if _take_all(elf.name, notes, found()):
            notes.source = source
            return notes
    section = elf.section(LEGACY_SECTION)
    if section is None:
        return XenNotes()
    return _legacy(elf.name, elf.contents(section))


def _take_all(name: str, notes: XenNotes, found: Iterable[tuple[bytes, int, bytes]]) -> bool:
    seen = False
    for owner, kind, desc in found:
        if owner == NOTE_NAME and kind in _READERS:
            seen = True
            _READERS[XEN_ELFNOTE(kind)](notes, _Desc(name, XEN_ELFNOTE(kind), desc))
    return seen


class _Desc(NamedTuple):
    """The value of one note, to be read as what its type says."""

    file: str
    kind: XEN_ELFNOTE
    data: bytes

    def number(self) -> int:
        """Return a numeric value of 4 or 8 bytes."""
        if len(self.data) not in (4, 8):
            raise self._wrong(f"has {len(self.data)} bytes", "4 or 8")
        return int.from_bytes(self.data, "little")

    def text(self) -> str:
        """Return a string up to its NUL, which Linux's FEATURES lacks."""
        return self.data.split(b"\0")[0].decode("ascii", "replace")

    def flag(self) -> bool:
        """Return a truth value, a number or "yes"."""
        return self.text() == "yes" if self.kind is XEN_ELFNOTE.BSD_SYMTAB else bool(self.number())

    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Return (mask, value) pairs of 64-bit words, or of 32-bit words in a kernel without PAE."""
        word = "Q" if len(self.data) % 16 == 0 else "I"
        form = struct.Struct(f"<{word}{word}")
        if not self.data or len(self.data) % form.size:
            raise self._wrong(f"has {len(self.data)} bytes", "(mask, value) pairs")
        return tuple(form.iter_unpack(self.data))

    def reloc(self) -> Phys32Reloc:
        """Return one to three 32-bit words, the absent ones at their defaults."""
        if len(self.data) not in (4, 8, 12):
            raise self._wrong(f"has {len(self.data)} bytes", "4, 8 or 12")
        reloc = Phys32Reloc(*struct.unpack(f"<{len(self.data) // 4}I", self.data))
        if not reloc.align or reloc.align & (reloc.align - 1):
            raise self._wrong(f"has alignment {reloc.align:#x}", "a power of two")
        return reloc

    def _wrong(self, what: str, right: str) -> ConfigError:
        return ConfigError(f"{self.file}: XEN_ELFNOTE_{self.kind.name} ({self.kind}) {what}; {right} would be right")


def _store(attribute: str, read: Callable[[_Desc], object]) -> Callable[[XenNotes, _Desc], None]:
    return lambda notes, desc: setattr(notes, attribute, read(desc))


def _add_features(notes: XenNotes, text: str) -> None:
    for word in text.split("|"):
        name = word.removeprefix("!")
        if name in FEATURE_NAMES:
            bit = 1 << FEATURE_NAMES.index(name)
            notes.supported_features |= bit
            if word != name:
                notes.required_features |= bit


def _take_features(notes: XenNotes, desc: _Desc) -> None:
    _add_features(notes, desc.text())


def _take_supported(notes: XenNotes, desc: _Desc) -> None:
    notes.supported_features |= desc.number()


_READERS: Final[dict[XEN_ELFNOTE, Callable[[XenNotes, _Desc], None]]] = {
    XEN_ELFNOTE.ENTRY: _store("entry", _Desc.number),
    XEN_ELFNOTE.HYPERCALL_PAGE: _store("hypercall_page", _Desc.number),
    XEN_ELFNOTE.VIRT_BASE: _store("virt_base", _Desc.number),
    XEN_ELFNOTE.PADDR_OFFSET: _store("paddr_offset", _Desc.number),
    XEN_ELFNOTE.XEN_VERSION: _store("xen_version", _Desc.text),
    XEN_ELFNOTE.GUEST_OS: _store("guest_os", _Desc.text),
    XEN_ELFNOTE.GUEST_VERSION: _store("guest_version", _Desc.text),
    XEN_ELFNOTE.LOADER: _store("loader", _Desc.text),
    XEN_ELFNOTE.PAE_MODE: _store("pae_mode", _Desc.text),
    XEN_ELFNOTE.FEATURES: _take_features,
    XEN_ELFNOTE.BSD_SYMTAB: _store("bsd_symtab", _Desc.flag),
    XEN_ELFNOTE.HV_START_LOW: _store("hv_start_low", _Desc.number),
    XEN_ELFNOTE.L1_MFN_VALID: _store("l1_mfn_valid", _Desc.pairs),
    XEN_ELFNOTE.SUSPEND_CANCEL: _store("suspend_cancel", _Desc.flag),
    XEN_ELFNOTE.INIT_P2M: _store("init_p2m", _Desc.number),
    XEN_ELFNOTE.MOD_START_PFN: _store("mod_start_pfn", _Desc.flag),
    XEN_ELFNOTE.SUPPORTED_FEATURES: _take_supported,
    XEN_ELFNOTE.PHYS32_ENTRY: _store("phys32_entry", _Desc.number),
    XEN_ELFNOTE.PHYS32_RELOC: _store("phys32_reloc", _Desc.reloc),
}


_LEGACY_TEXT: Final = {
    "XEN_VER": "xen_version",
    "GUEST_OS": "guest_os",
    "GUEST_VER": "guest_version",
    "LOADER": "loader",
    "PAE": "pae_mode",
}
_LEGACY_NUMBERS: Final = {"VIRT_ENTRY": "entry", "VIRT_BASE": "virt_base", "ELF_PADDR_OFFSET": "paddr_offset"}


def _legacy(file: str, contents: bytes) -> XenNotes:
    """Read a `NAME=VALUE,NAME=VALUE` string; unknown names are for others."""
    notes = XenNotes()
    notes.source = LEGACY_SECTION
    hypercall_pfn: int | None = None
    for item in contents.split(b"\0")[0].decode("ascii", "replace").split(","):
        name, _, value = item.partition("=")
        if name in _LEGACY_TEXT:
            setattr(notes, _LEGACY_TEXT[name], value)
        elif name in _LEGACY_NUMBERS:
            setattr(notes, _LEGACY_NUMBERS[name], _legacy_number(file, name, value))
        elif name == "HYPERCALL_PAGE":
            hypercall_pfn = _legacy_number(file, name, value)
        elif name == "FEATURES":
            _add_features(notes, value)
        elif name == "BSD_SYMTAB":
            notes.bsd_symtab = True
    if notes.paddr_offset is None:
        notes.paddr_offset = notes.virt_base  # the older format's default
    if hypercall_pfn is not None:
        notes.hypercall_page = (notes.virt_base or 0) + (hypercall_pfn << PAGE_SHIFT)
    return notes


def _legacy_number(file: str, name: str, value: str) -> int:
    try:
        number = int(value, 0)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 64:
        raise ConfigError(f"{file}: {LEGACY_SECTION} has {name}={value!r:.40}; a number of 64 bits would be right")
    return number
