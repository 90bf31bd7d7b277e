"""PVH kernels of a few dozen bytes, made without a compiler: what the measurements run where a whole kernel is too much.

Each starts in 32-bit protected mode with paging off. Ref: xen-doc misc/pvh.pandoc; ELF: elf(5)
"""

from __future__ import annotations

from struct import pack
from typing import TYPE_CHECKING, Final

from xenpy.abi.elfnote import NOTE_NAME, XEN_ELFNOTE
from xenpy.domain.cpuid import XEN_MSR
from xenpy.domain.pvh import hypercall_page
from xenpy.memory import PAGE_SIZE

if TYPE_CHECKING:
    from pathlib import Path

LOAD_GPA: Final = 0x100000
PAGE_GPA: Final = LOAD_GPA
"""The hypercall page comes first, as the fallback fills it in, so that the image also runs where nobody fills it."""
ENTRY_GPA: Final = PAGE_GPA + PAGE_SIZE
STACK_GPA: Final = ENTRY_GPA + PAGE_SIZE
STUB_SIZE: Final = 32
XEN_VERSION: Final = 17
SCHED_OP: Final = 29
SCHEDOP_SHUTDOWN: Final = 2

FIRST_MARK: Final = b"1"
LAST_MARK: Final = b"2"

_PT_LOAD, _PT_NOTE = 1, 4
_PF_RWX: Final = 7
_ET_EXEC, _EM_386 = 2, 3
_HEADER, _PHDR = 52, 32


def _image(code: bytes) -> bytes:
    """Return an ELF file of the hypercall page and `code` behind it, which is where the kernel starts."""
    loaded = hypercall_page(in_kernel=False, amd=False) + code.ljust(PAGE_SIZE, b"\0") + bytes(PAGE_SIZE)
    name = NOTE_NAME + b"\0"
    note = pack("<3I4sI", len(name), 4, XEN_ELFNOTE.PHYS32_ENTRY, name, ENTRY_GPA)
    note_offset = _HEADER + 2 * _PHDR
    header = b"\x7fELF\x01\x01\x01".ljust(16, b"\0") + pack(
        "<HHIIIIIHHHHHH", _ET_EXEC, _EM_386, 1, ENTRY_GPA, _HEADER, 0, 0, _HEADER, _PHDR, 2, 0, 0, 0
    )
    load = pack("<8I", _PT_LOAD, PAGE_SIZE, LOAD_GPA, LOAD_GPA, len(loaded), len(loaded), _PF_RWX, PAGE_SIZE)
    notes = pack("<8I", _PT_NOTE, note_offset, 0, 0, len(note), len(note), 4, 4)
    return (header + load + notes + note).ljust(PAGE_SIZE, b"\0") + loaded


def _mov(opcode: int, value: int) -> bytes:
    """Return MOV of an immediate to the register that the opcode names."""
    return bytes((opcode,)) + pack("<I", value)


_EAX, _ECX, _EDX, _EBX, _ESP, _ESI, _EDI = 0xB8, 0xB9, 0xBA, 0xBB, 0xBC, 0xBE, 0xBF
_CALL_EDI: Final = bytes.fromhex("ffd7")
_DEC_ESI: Final = bytes.fromhex("4e")
_WRMSR: Final = bytes.fromhex("0f30")
_HLT_FOREVER: Final = bytes.fromhex("fb f4 ebfd")  # STI; HLT; JMP back to HLT
_JNZ: Final = 0x75


def _mark(mark: bytes) -> bytes:
    """Return MOV of a byte to AL and OUT of it to the emergency console."""
    return bytes((0xB0, mark[0], 0xE6, 0xE9))


def _stub(number: int) -> int:
    return PAGE_GPA + number * STUB_SIZE


def _power_off() -> bytes:
    """Return SCHEDOP_shutdown for SHUTDOWN_poweroff, which is 0, as are the words at the stack's far end."""
    return _mov(_EBX, SCHEDOP_SHUTDOWN) + _mov(_ECX, STACK_GPA) + _mov(_EDI, _stub(SCHED_OP)) + _CALL_EDI


def hypercall_loop(count: int) -> bytes:
    """Return a kernel that makes `count` calls of XENVER_version between two marks, then powers off."""
    call = b"\x31\xdb" + _CALL_EDI + _DEC_ESI  # xor ebx, ebx
    loop = call + bytes((_JNZ, 0x100 - len(call) - 2))
    body = _mov(_EDI, _stub(XEN_VERSION)) + _mov(_ESI, count) + _mark(FIRST_MARK) + loop + _mark(LAST_MARK)
    return _image(_PLACE_PAGE + _SET_STACK + body + _power_off())


_PLACE_PAGE: Final = _mov(_ECX, XEN_MSR) + _mov(_EAX, PAGE_GPA) + _mov(_EDX, 0) + _WRMSR
_SET_STACK: Final = _mov(_ESP, STACK_GPA + PAGE_SIZE)
LOOP_GPA: Final = ENTRY_GPA + len(_PLACE_PAGE)
"""Where the loop's code starts for a monitor that has no Xen MSR: behind the placing of the hypercall page."""


def first_instruction() -> bytes:
    """Return a kernel that makes its mark at once, then powers off."""
    return _image(_mark(FIRST_MARK) + _PLACE_PAGE + _SET_STACK + _power_off())


def idle() -> bytes:
    """Return a kernel that makes its mark and halts, with interrupts on."""
    return _image(_mark(FIRST_MARK) + _HLT_FOREVER)


def write_guest(directory: Path, name: str, kernel: bytes, *, memory_mib: int = 32) -> Path:
    """Write a kernel and its configuration; return the latter's path."""
    path = directory / f"{name}.elf"
    path.write_bytes(kernel)
    config = directory / f"{name}.cfg"
    config.write_text(
        f'name = "{name}"\ntype = "pvh"\nkernel = "{path}"\nmemory = {memory_mib}\nxenpy_kvm_xen = 0\n',
        encoding="utf-8",
    )
    return config
