"""A PV kernel of a page, made without a compiler: XENVER_version in a loop between two marks on the emergency console.

The call is the instructions by which Linux makes it, so that it is made to call in-guest code where Linux would be.

Ref: xen/include/public/arch-x86/xen-x86_64.h; ELF: elf(5)
"""

from __future__ import annotations

from struct import pack
from typing import TYPE_CHECKING, Final

from tiny import SCHED_OP, SCHEDOP_SHUTDOWN, XEN_VERSION

from xenpy.abi.elfnote import NOTE_NAME, XEN_ELFNOTE
from xenpy.asm import Assembler, mem
from xenpy.asm.registers import eax, edi, esi, r11, r12, rax, rcx, rdx, rsi
from xenpy.memory import PAGE_SIZE

if TYPE_CHECKING:
    from pathlib import Path

_BASE: Final = 0xFFFF_FFFF_8010_0000
_VIRT_BASE: Final = 0xFFFF_FFFF_8000_0000
FIRST_MARK: Final = b"the loop starts\n"
LAST_MARK: Final = b"the loop is over\n"
_CONSOLE_IO, _IRET = 18, 23
_CONSOLEIO_WRITE: Final = 0
_PT_LOAD, _PT_NOTE, _PF_RWX, _ET_EXEC, _EM_X86_64 = 1, 4, 7, 2, 62
_HEADER, _PHDR = 64, 56


def _say(a: Assembler, mark: bytes) -> None:
    a.mov(eax, _CONSOLE_IO)
    a.mov(edi, _CONSOLEIO_WRITE)
    a.mov(esi, len(mark))
    a.lea(rdx, mem(rip=mark.decode()))
    a.call("hypercall")


def _code(count: int) -> bytes:
    a = Assembler(_BASE)
    a.mov(r12, count)
    _say(a, FIRST_MARK)
    a.label("again")
    a.mov(eax, XEN_VERSION)
    a.mov(edi, 0)
    a.call("hypercall")
    a.dec(r12)
    a.jnz("again")
    _say(a, LAST_MARK)
    a.mov(eax, SCHED_OP)
    a.mov(edi, SCHEDOP_SHUTDOWN)
    a.lea(rsi, mem(rip="reason"))
    a.call("hypercall")
    a.ud2()
    a.label("hypercall")
    a.push(rcx)
    a.push(r11)
    a.syscall()
    a.pop(r11)
    a.pop(rcx)
    a.ret()
    a.push(rcx)  # never reached: by this and the above a kernel is known
    a.push(r11)
    a.push(rax)
    a.data(b"\xb8" + pack("<I", _IRET))
    a.syscall()
    a.align(8)
    a.label("reason")
    a.quad(0)
    for mark in (FIRST_MARK, LAST_MARK):
        a.label(mark.decode())
        a.data(mark)
    return a.assemble()


def hypercall_loop(count: int) -> bytes:
    """Return a PV kernel that calls XENVER_version `count` times between two marks, then powers off."""
    code = _code(count)
    notes = b"".join(
        pack("<3I4s", len(NOTE_NAME) + 1, len(value), kind, NOTE_NAME + b"\0") + value + bytes(-len(value) % 4)
        for kind, value in (
            (XEN_ELFNOTE.ENTRY, pack("<Q", _BASE)),
            (XEN_ELFNOTE.VIRT_BASE, pack("<Q", _VIRT_BASE)),
            (XEN_ELFNOTE.PADDR_OFFSET, pack("<Q", _VIRT_BASE)),
            (XEN_ELFNOTE.XEN_VERSION, b"xen-3.0\0"),
            (XEN_ELFNOTE.LOADER, b"generic\0"),
            (XEN_ELFNOTE.GUEST_OS, b"bench\0"),
        )
    )
    note_offset = _HEADER + 2 * _PHDR
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = ident + pack("<HHIQQQIHHHHHH", _ET_EXEC, _EM_X86_64, 1, _BASE, _HEADER, 0, 0, _HEADER, _PHDR, 2, 64, 0, 0)
    load = pack("<IIQQQQQQ", _PT_LOAD, _PF_RWX, PAGE_SIZE, _BASE, _BASE, len(code), len(code), PAGE_SIZE)
    note = pack("<IIQQQQQQ", _PT_NOTE, 4, note_offset, 0, 0, len(notes), len(notes), 4)
    return (header + load + note + notes).ljust(PAGE_SIZE, b"\0") + code


def write_guest(directory: Path, count: int) -> Path:
    """Write such a kernel and its configuration; return the latter's path."""
    kernel = directory / "loop-pv.elf"
    kernel.write_bytes(hypercall_loop(count))
    config = directory / "loop-pv.cfg"
    config.write_text(f'name = "loop"\ntype = "pv"\nkernel = "{kernel}"\nmemory = 32\n', encoding="utf-8")
    return config
