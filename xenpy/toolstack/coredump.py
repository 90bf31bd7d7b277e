"""A domain's memory and vCPUs in an ELF file, for `crash` and whatever else reads what `xl dump-core` writes.

Ref: docs/misc/dump-core-format.txt, xen/include/public/elfnote.h
"""

from __future__ import annotations

from pathlib import Path
from struct import pack
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple

from xenpy.abi import _xen64
from xenpy.api.processors import Processors
from xenpy.api.progress import Progress
from xenpy.memory import PAGE_SHIFT, PAGE_SIZE
from xenpy.pv.version import CAPABILITIES
from xenpy.toolstack.protocol import CommandError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xenpy.api.processors import Registers
    from xenpy.domain.domain import Domain

_MAGIC_PV: Final = 0xF00FEBED
_MAGIC_HVM: Final = 0xF00FEBEE
_NOTE_NONE, _NOTE_HEADER, _NOTE_XEN_VERSION, _NOTE_FORMAT_VERSION = range(0x2000000, 0x2000004)
_FORMAT: Final = 0 << 32 | 1
_VIRT_START: Final = 0xFFFF_8000_0000_0000
_VERSION_STRINGS: Final = "<QQ16s 64s16s32s32s 1024s64sQQ"
"""struct xen_dumpcore_elfnote_xen_version_desc; the string lengths are those of version.h. Ref: xen/include/public/version.h"""
_SHT_PROGBITS, _SHT_STRTAB, _SHT_NOTE = 1, 3, 7
_ET_CORE, _EM_X86_64 = 4, 62
_HEADER_SIZE, _SECTION_SIZE = 64, 64
_GUEST_KERNEL_FLAGS: Final = 1 << 2 | 1 << 5
"""VGCF_in_kernel and VGCF_online. Ref: xen/include/public/arch-x86/xen.h"""


class _Section(NamedTuple):
    name: str
    type: int
    offset: int
    size: int
    entry_size: int = 0


class _Pages(NamedTuple):
    """Frames to dump, ascending by pfn."""

    pfns: Sequence[int]
    gfns: Sequence[int]


def dump(domain: Domain, path: str) -> None:
    """Write a core of a domain, which stands still meanwhile. Raises CommandError, and what stopping a vCPU raises."""
    processors = Processors(domain, Progress(domain.name))
    try:
        with Path(path).open("wb") as file, processors.held():
            registers = [processors.registers(vcpu.vcpu_id) for vcpu in domain.vcpus]
            with domain.host.lock:
                _write(file, domain, registers)
    except OSError as error:
        raise CommandError(f"{path}: the core cannot be written: {error.strerror}") from None


def _write(file: BinaryIO, domain: Domain, registers: Sequence[Registers]) -> None:
    pages = _pages(domain)
    contexts = b"".join(_context(each) for each in registers)
    sections = [_Section("", 0, 0, 0)]
    file.seek(_HEADER_SIZE)
    table = "xen_p2m" if domain.is_pv else "xen_pfn"
    frames = (
        b"".join(pack("<QQ", *pair) for pair in zip(pages.pfns, pages.gfns, strict=True))
        if domain.is_pv
        else pack(f"<{len(pages.pfns)}Q", *pages.pfns)
    )
    for name, kind, data, entry_size in (
        (".note.Xen", _SHT_NOTE, _notes(domain, len(registers), len(pages.pfns)), 0),
        (".xen_prstatus", _SHT_PROGBITS, contexts, len(contexts) // len(registers)),
        (".xen_shared_info", _SHT_PROGBITS, bytes(domain.shared_info.view[:PAGE_SIZE]), PAGE_SIZE),
        (f".{table}", _SHT_PROGBITS, frames, len(frames) // max(1, len(pages.pfns))),
    ):
        sections.append(_Section(name, kind, file.tell(), len(data), entry_size))
        file.write(data)
    start = -(-file.tell() // PAGE_SIZE) * PAGE_SIZE
    file.seek(start)
    file.writelines(domain.memory.view(gfn << PAGE_SHIFT, PAGE_SIZE) for gfn in pages.gfns)
    sections.append(_Section(".xen_pages", _SHT_PROGBITS, start, len(pages.gfns) * PAGE_SIZE, PAGE_SIZE))
    _finish(file, sections)


def _pages(domain: Domain) -> _Pages:
    memory = domain.memory
    gfns = [
        gfn
        for region in memory.regions
        for gfn in range(region.gpa >> PAGE_SHIFT, (region.gpa + region.size) >> PAGE_SHIFT)
        if memory.is_ram(gfn)
    ]
    if not domain.is_pv:
        return _Pages(gfns, gfns)
    from xenpy.domain.pv.domain import PvDomain

    assert isinstance(domain, PvDomain)
    pairs = sorted((int(domain.m2p[gfn]), gfn) for gfn in gfns if gfn < len(domain.m2p))
    return _Pages([pfn for pfn, _ in pairs], [gfn for _, gfn in pairs])


def _context(registers: Registers) -> bytes:
    """Return a vCPU's struct vcpu_guest_context, with what a debugger reads of it."""
    ffi: Any = _xen64.ffi
    context = ffi.new("struct vcpu_guest_context *")
    user = context.user_regs
    for name in ("rip", "rflags", "rsp", "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "cs", "ss"):
        setattr(user, name, getattr(registers, name))
    for number in range(8, 16):
        setattr(user, f"r{number}", getattr(registers, f"r{number}"))
    for number in (0, 2, 3, 4):
        context.ctrlreg[number] = getattr(registers, f"cr{number}")
    context.flags = _GUEST_KERNEL_FLAGS
    context.fs_base = registers.fs_base
    context.gs_base_kernel = registers.gs_base
    return bytes(ffi.buffer(context))


def _notes(domain: Domain, vcpus: int, pages: int) -> bytes:
    version = domain.version
    strings = [
        text.encode()
        for text in (
            version.extraversion, version.compiler, version.compile_by, version.compile_domain, version.compile_date,
            CAPABILITIES, version.changeset,
        )
    ]  # fmt: skip
    about = pack(_VERSION_STRINGS, version.major, version.minor, *strings, _VIRT_START, PAGE_SIZE)
    magic = _MAGIC_PV if domain.is_pv else _MAGIC_HVM
    return b"".join(
        pack("<III4s", len("Xen") + 1, len(data), kind, b"Xen") + data
        for kind, data in (
            (_NOTE_NONE, b""),
            (_NOTE_HEADER, pack("<4Q", magic, vcpus, pages, PAGE_SIZE)),
            (_NOTE_XEN_VERSION, about),
            (_NOTE_FORMAT_VERSION, pack("<Q", _FORMAT)),
        )
    )


def _finish(file: BinaryIO, sections: list[_Section]) -> None:
    """Write the section names, the section table and the ELF header. Ref: elf(5)"""
    names = b"".join(section.name.encode() + b"\0" for section in sections) + b".shstrtab\0"
    sections.append(_Section(".shstrtab", _SHT_STRTAB, file.tell(), len(names)))
    file.write(names)
    file.seek(-file.tell() % 8, 1)
    table = file.tell()
    for section in sections:
        offset = 0 if not section.name else names.index(section.name.encode() + b"\0")
        file.write(
            pack("<IIQQQQIIQQ", offset, section.type, 0, 0, section.offset, section.size, 0, 0, 0, section.entry_size)
        )
    file.seek(0)
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    file.write(
        pack(
            "<16sHHIQQQIHHHHHH", ident, _ET_CORE, _EM_X86_64, 1, 0, 0, table, 0, _HEADER_SIZE, 0, 0, _SECTION_SIZE,
            len(sections), len(sections) - 1,
        )
    )  # fmt: skip
