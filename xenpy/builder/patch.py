"""Finding a kernel's hypercall instructions, for hosts whose KVM swallows them.

Without CONFIG_KVM_XEN, KVM answers VMCALL and VMMCALL itself and tells nobody. Both are three bytes, and so is `out %eax, $port; nop`, which
leaves the guest. Linux keeps its hypercalls in two functions of one instruction each, xen_hypercall_amd and xen_hypercall_intel, which lie side
by side; the same bytes also occur in hundreds of other places (VMware's and KVM's own hypercalls, the ends of `rep; ...` pairs, tables), so it
is the pair that is looked for. Kernels that call through the hypercall page have none, and need none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xenpy.builder.elf import Segment
    from xenpy.builder.kernel import KernelImage
    from xenpy.memory import GuestMemory

VMCALL: Final = bytes.fromhex("0f01c1")
VMMCALL: Final = bytes.fromhex("0f01d9")
_SIZE: Final = 3
_RETURNS: Final = re.compile(rb"\x0f\x01([\xc1\xd9])(?:\xe9(.{4})|\xc3)", re.DOTALL)
_NEIGHBOURHOOD: Final = 128
"""How far apart, in bytes, the two functions may start; alignment makes it 16 to 64."""
_EXECUTE: Final = 1
_SYMBOLS: Final = ("xen_hypercall_amd", "xen_hypercall_intel", "xen_hypercall")
_ENDBR64: Final = bytes.fromhex("f30f1efa")


@dataclass(frozen=True)
class Site:
    """A hypercall instruction: its physical address as linked, and its three bytes."""

    paddr: int
    code: bytes


def find_hypercall_sites(kernel: KernelImage) -> list[Site]:
    """Return the instructions by which a kernel makes hypercalls; empty if it has none that can be told for sure."""
    return _by_symbol(kernel) or _by_shape(kernel)


def _by_symbol(kernel: KernelImage) -> list[Site]:
    """Look at the functions' first instructions, where the image has a symbol table."""
    sites = []
    for name in _SYMBOLS:
        symbol = kernel.elf.symbol(name)
        if symbol is None:
            continue
        for segment in kernel.elf.loadable:
            offset = symbol.value - segment.vaddr
            if 0 <= offset <= segment.filesz - 8:
                start = segment.offset + offset
                head = bytes(kernel.data[start : start + 8])
                skip = len(_ENDBR64) if head.startswith(_ENDBR64) else 0
                code = head[skip : skip + _SIZE]
                if code in (VMCALL, VMMCALL):
                    sites.append(Site(segment.paddr + offset + skip, code))
    return sites


def _by_shape(kernel: KernelImage) -> list[Site]:
    """Look for a VMMCALL and a VMCALL near each other that return the same way; more than one such pair tells nothing."""
    pairs = []
    for segment in kernel.elf.loadable:
        if segment.flags & _EXECUTE:
            pairs += list(_pairs(kernel, segment))
    return list(pairs[0]) if len(pairs) == 1 else []


def _pairs(kernel: KernelImage, segment: Segment) -> Iterator[tuple[Site, Site]]:
    previous: tuple[int, bytes, int | None] | None = None
    for match in _RETURNS.finditer(kernel.data, segment.offset, segment.offset + segment.filesz):
        target = None
        if match[2] is not None:
            target = match.end() + int.from_bytes(match[2], "little", signed=True)
        here = (match.start(), match[0][:_SIZE], target)
        if previous is not None and here[0] - previous[0] <= _NEIGHBOURHOOD:
            both_kinds = {previous[1], here[1]} == {VMCALL, VMMCALL}
            same_return = previous[2] == target
            if both_kinds and same_return and _padded(kernel, previous, here):
                move = segment.paddr - segment.offset
                yield Site(previous[0] + move, previous[1]), Site(here[0] + move, here[1])
        previous = here


def _padded(kernel: KernelImage, first: tuple[int, bytes, int | None], second: tuple[int, bytes, int | None]) -> bool:
    """Tell whether only padding (NOPs, INT3, ENDBR64) lies between two functions, which an unrelated pair would not have."""
    start = first[0] + _SIZE + (1 if first[2] is None else 5)
    between = bytes(kernel.data[start : second[0]]).removesuffix(_ENDBR64)
    return not between.strip(b"\x90\xcc\x0f\x1f\x84\x80\x40\x44\x66\x2e\x00")


def apply(memory: GuestMemory, sites: list[Site], port: int, *, moved: int = 0) -> None:
    """Replace each instruction by OUT to an I/O port; `moved` is how far the kernel was loaded from where it is linked."""
    for site in sites:
        memory.write(site.paddr + moved, bytes((0xE7, port, 0x90)))
