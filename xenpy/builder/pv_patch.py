"""Where a PV kernel makes its hypercalls, and how to have it call the shim there instead.

On hosts where SYSCALL costs as much as an exit, in-guest code that is reached by SYSCALL saves little. Kernels since the fix of XSA-466
have no hypercall page: they execute SYSCALL in one function, and once more for IRET. The image in memory is changed there, in place,
byte for byte:

    push rcx; push r11; syscall; pop r11; pop rcx      becomes  call [pointer]; nop
    push rcx; push r11; push rax; mov eax, 23; syscall becomes  push rcx; push r11; push rax; jmp [pointer]; nop
    pushfq; cli; cmp gs:[rsi], rax                     becomes  pushfq; nop; cmp gs:[rsi], rax

The last is a compare-and-exchange of 16 bytes that kernels use before they know the processor; CLI does nothing in a PV guest but fault.
The pointers lie in the unused end of the segment's last page. A kernel without these very bytes is left as it is, and works as well.

Ref: XSA-466
"""

from __future__ import annotations

import re
from struct import pack
from typing import TYPE_CHECKING, Final, NamedTuple

from xenpy.memory import PAGE_SIZE

if TYPE_CHECKING:
    from xenpy.builder.elf import Segment
    from xenpy.builder.kernel import KernelImage

_CALL: Final = re.compile(rb"\x51\x41\x53\x0f\x05\x41\x5b\x59(?=[\xe9\xc3])")
_IRET: Final = re.compile(rb"(?<=\x51\x41\x53\x50)\xb8\x17\x00\x00\x00\x0f\x05")
_CLI: Final = re.compile(rb"(?<=\x9c)\xfa(?=\x65\x48\x3b\x06)")
_CALL_MEMORY: Final = b"\xff\x15"
_JUMP_MEMORY: Final = b"\xff\x25"
_NOP: Final = b"\x90"
_NOP2: Final = b"\x66\x90"
_POINTERS: Final = 2


class Patch(NamedTuple):
    """Bytes to write at a physical address of the kernel's."""

    paddr: int
    data: bytes


def make_patches(kernel: KernelImage, hypercall: int, iret: int) -> list[Patch]:
    """Return what has a kernel call `hypercall` and jump to `iret`, both addresses of the shim's; nothing if it is not a known one."""
    image = memoryview(kernel.data)
    patches: list[Patch] = []
    for segment in kernel.elf.loadable:
        contents = image[segment.offset : segment.offset + segment.filesz]
        calls, irets = (list(pattern.finditer(contents)) for pattern in (_CALL, _IRET))
        table = _free_end(segment)
        if len(calls) == len(irets) == 1 and table is not None:
            patches.append(Patch(table, pack("<QQ", hypercall, iret)))
            at = segment.paddr + calls[0].start()
            patches.append(Patch(at, _CALL_MEMORY + pack("<i", table - at - 6) + _NOP2))
            at = segment.paddr + irets[0].start()
            patches.append(Patch(at, _JUMP_MEMORY + pack("<i", table + 8 - at - 6) + _NOP))
            clis = list(_CLI.finditer(contents))
            if len(clis) == 1:
                patches.append(Patch(segment.paddr + clis[0].start(), _NOP))
    return patches


def _free_end(segment: Segment) -> int | None:
    """Return the physical address of room for the pointers behind a segment, in its last page."""
    start = segment.paddr + segment.memsz + 7 & -8
    return start if start % PAGE_SIZE and start % PAGE_SIZE + _POINTERS * 8 <= PAGE_SIZE else None
