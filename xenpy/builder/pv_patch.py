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

from struct import pack
from typing import TYPE_CHECKING, Final, NamedTuple

from xenpy.builder.elf import PF_X
from xenpy.builder.patch import code_parts
from xenpy.memory import PAGE_SIZE

if TYPE_CHECKING:
    from xenpy.builder.elf import Segment
    from xenpy.builder.kernel import KernelImage

_CALL: Final = b"\x51\x41\x53\x0f\x05\x41\x5b\x59"
_RETURNS: Final = (b"\xe9", b"\xc3")
"""What must come behind a call: a jump to the return thunk, or RET."""
_IRET: Final = b"\x51\x41\x53\x50\xb8\x17\x00\x00\x00\x0f\x05"
_IRET_KEPT: Final = 4
"""The pushes that stay."""
_CLI: Final = b"\x9c\xfa\x65\x48\x3b\x06"
_CLI_KEPT: Final = 1
_CALL_MEMORY: Final = b"\xff\x15"
_JUMP_MEMORY: Final = b"\xff\x25"
_NOP: Final = b"\x90"
_NOP2: Final = b"\x66\x90"
_POINTERS: Final = 2


class Patch(NamedTuple):
    """Bytes to write at a physical address of the kernel's."""

    paddr: int
    data: bytes


def make_patches(kernel: KernelImage, ways: tuple[int, int] | None) -> list[Patch]:
    """Return what has a kernel call `ways[0]` for a hypercall and jump to `ways[1]` for IRET, both addresses of the shim's.

    None leaves SYSCALL as it is, where that is the way to the shim. Nothing is returned for a kernel that is not a known one.
    """
    patches: list[Patch] = []
    for segment in kernel.elf.loadable:
        table = _free_end(segment)
        if table is None or not segment.flags & PF_X:
            continue
        # One after the other, for each takes a hundredth of a second or two.
        calls = [at for at in _find(kernel, segment, _CALL) if _byte(kernel, segment, at + len(_CALL)) in _RETURNS]
        irets = _find(kernel, segment, _IRET) if len(calls) == 1 else []
        if len(irets) == 1:
            if ways is not None:
                patches.append(Patch(table, pack("<QQ", *ways)))
                at = calls[0]
                patches.append(Patch(at, _CALL_MEMORY + pack("<i", table - at - 6) + _NOP2))
                at = irets[0] + _IRET_KEPT
                patches.append(Patch(at, _JUMP_MEMORY + pack("<i", table + 8 - at - 6) + _NOP))
            clis = _find(kernel, segment, _CLI)
            if len(clis) == 1:
                patches.append(Patch(clis[0] + _CLI_KEPT, _NOP))
    return patches


def _find(kernel: KernelImage, segment: Segment, code: bytes) -> list[int]:
    """Return the physical addresses in a segment where `code` stands; a search for plain bytes is ten times as fast as one by `re`."""
    found: list[int] = []
    for part in code_parts(kernel):
        at = max(part.start, segment.offset)
        end = min(part.end, segment.offset + segment.filesz)
        while (at := kernel.data.find(code, at, end)) >= 0:
            found.append(at + part.to_paddr)
            at += 1
    return found


def _byte(kernel: KernelImage, segment: Segment, paddr: int) -> bytes:
    at = paddr - segment.paddr + segment.offset
    return kernel.data[at : min(at + 1, segment.offset + segment.filesz)]


def _free_end(segment: Segment) -> int | None:
    """Return the physical address of room for the pointers behind a segment, in its last page."""
    start = segment.paddr + segment.memsz + 7 & -8
    return start if start % PAGE_SIZE and start % PAGE_SIZE + _POINTERS * 8 <= PAGE_SIZE else None
