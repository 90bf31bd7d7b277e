"""Finding a kernel's hypercall instructions, for hosts whose KVM swallows them.

Without CONFIG_KVM_XEN, KVM answers VMCALL and VMMCALL itself and tells nobody. Both are three bytes long, and so is
`out %eax, $port; nop`, which leaves the guest. Linux has its hypercalls in two functions of one instruction each,
xen_hypercall_amd and xen_hypercall_intel, side by side. The same bytes are in dozens of other places (KVM's, VMware's and TDX's
hypercalls, pieces of other instructions), so it is the pair that is looked for, and none is touched unless there is exactly one.
Kernels that call through the hypercall page have none, and need none.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from xenpy.builder.elf import PF_X, SHF_EXECINSTR, SHT_NOBITS
from xenpy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xenpy.builder.kernel import KernelImage
    from xenpy.memory import GuestMemory

VMCALL: Final = bytes.fromhex("0f01c1")
VMMCALL: Final = bytes.fromhex("0f01d9")
"""Ref: Intel SDM volume 2, VMCALL; AMD APM volume 3, VMMCALL."""

_SYMBOLS: Final = ("xen_hypercall_amd", "xen_hypercall_intel")
_ENDBR: Final = re.compile(rb"\xf3\x0f\x1e[\xfa\xfb]")
_RETURNING: Final = re.compile(rb"\x0f\x01[\xc1\xd9](?:\xe9(....)|\xc3)", re.DOTALL)
"""The instruction and a return: RET, or a jump to the return thunk by which Linux replaces it."""
_PADDING: Final = re.compile(
    rb"(?:\xcc|[\x66\x2e]*(?:\x90"  # INT3, NOP
    rb"|\x0f\x1f(?:[\x00-\x03]|\x40.|\x44..|\x80....|\x84.....)"  # NOPs of many bytes
    rb"|\x8d(?:\x76\x00|\xb6\x00{4}|\x74\x26\x00|\xb4\x26\x00{4})"  # the same as 32-bit compilers write them
    rb"))*(?:\xf3\x0f\x1e[\xfa\xfb])?",
    re.DOTALL,
)
_GAP_MAX: Final = 128
"""The farthest that the two functions start from each other, in bytes; alignment and padding make it 16 to 64."""

_SMALL: Final = 1 << 20
"""Up to this many bytes of code, one instruction by itself is taken for a hypercall if its surroundings say so."""
_STUB: Final = re.compile(
    rb"\x0f\x01[\xc1\xd9](?=(?:\x41?[\x58-\x5f])*(?:\xc3|\xe9))"  # then POPs and a return
    rb"|\xb8[\x00-\x37]\x00{3}.{0,24}?(\x0f\x01[\xc1\xd9])",  # or MOV $hypercall, %eax shortly before
    re.DOTALL,
)
_ANY: Final = re.compile(rb"\x0f\x01[\xc1\xd9]")

_OUT_IMM8_EAX: Final = 0xE7
_NOP: Final = 0x90


class Site(NamedTuple):
    """A hypercall instruction: its physical address as linked, and its three bytes."""

    paddr: int
    code: bytes


class CodePart(NamedTuple):
    """A range of the file that holds instructions, and what to add to an offset in it for a physical address."""

    start: int
    end: int
    to_paddr: int


class _Function(NamedTuple):
    """A function that makes a hypercall and returns."""

    offset: int
    end: int
    code: bytes
    target: int | None
    """Where in the file its jump goes, None for RET."""


def find_hypercall_sites(kernel: KernelImage) -> list[Site]:
    """Return the instructions by which a kernel makes hypercalls; empty if it has none that can be told for sure."""
    code = tuple(code_parts(kernel))
    return _by_symbol(kernel, code) or _by_pair(kernel, code) or _by_itself(kernel, code)


def apply(memory: GuestMemory, sites: list[Site], port: int, *, moved: int = 0) -> None:
    """Replace each instruction by OUT of EAX to an I/O port (0 to 255); `moved` is how far the kernel was loaded from where it is linked.

    Raises ConfigError if a site does not hold its instruction: the kernel was not loaded as its image says.
    """
    for paddr, code in sites:
        if memory.read(paddr + moved, len(code)) != code:
            raise ConfigError(
                f"no {code.hex()} at {paddr + moved:#x}, where the kernel image has a hypercall instruction"
            )
        memory.write(paddr + moved, bytes((_OUT_IMM8_EAX, port, _NOP)))


def code_parts(kernel: KernelImage) -> Iterator[CodePart]:
    """Yield where the image has code: in executable sections, or in executable segments if there is no table of sections."""
    elf = kernel.elf
    executable = [segment for segment in elf.loadable if segment.flags & PF_X]
    try:
        sections = [
            each for each in elf.sections if each.flags & SHF_EXECINSTR and each.type != SHT_NOBITS and each.size
        ]
    except ConfigError:
        sections = []
    if not sections:
        for segment in executable:
            yield CodePart(segment.offset, segment.offset + segment.filesz, segment.paddr - segment.offset)
    for section in sections:
        end = section.offset + section.size
        for segment in executable:
            inside = segment.offset <= section.offset and end <= segment.offset + segment.filesz
            if inside and not section.name.startswith(".altinstr"):  # replacements, copied over code at boot
                yield CodePart(section.offset, end, segment.paddr - segment.offset)


def _by_symbol(kernel: KernelImage, code: tuple[CodePart, ...]) -> list[Site]:
    """Look at the functions themselves, where the image has a table of symbols; both must be what they are named."""
    sites = []
    try:
        symbols = [symbol for name in _SYMBOLS if (symbol := kernel.elf.symbol(name))]
    except ConfigError:
        return []
    for symbol in symbols:
        for segment in kernel.elf.loadable:
            offset = symbol.value - segment.vaddr + segment.offset
            if not any(each.start <= offset < each.end for each in code):
                continue
            endbr = _ENDBR.match(kernel.data, offset)
            found = _RETURNING.match(kernel.data, endbr.end() if endbr else offset)
            if found:
                sites.append(Site(found.start() - segment.offset + segment.paddr, found[0][: len(VMCALL)]))
    return sites if len(sites) == len(_SYMBOLS) else []


def _by_pair(kernel: KernelImage, code: tuple[CodePart, ...]) -> list[Site]:
    """Look for VMMCALL and VMCALL in neighbouring functions that return the same way."""
    pairs = [
        [Site(each.offset + part.to_paddr, each.code) for each in pair]
        for part in code
        for pair in _pairs(kernel, part)
    ]
    return pairs[0] if len(pairs) == 1 else []


def _pairs(kernel: KernelImage, part: CodePart) -> Iterator[tuple[_Function, _Function]]:
    previous: _Function | None = None
    for match in _RETURNING.finditer(kernel.data, part.start, part.end):
        jump = match[1]
        target = None if jump is None else match.end() + int.from_bytes(jump, "little", signed=True)
        function = _Function(match.start(), match.end(), match[0][: len(VMCALL)], target)
        if previous is not None and _are_pair(kernel, previous, function):
            yield previous, function
        previous = function


def _are_pair(kernel: KernelImage, first: _Function, second: _Function) -> bool:
    return (
        first.code != second.code
        and first.target == second.target
        and second.offset - first.offset <= _GAP_MAX
        and _PADDING.fullmatch(kernel.data, first.end, second.offset) is not None
    )


def _by_itself(kernel: KernelImage, code: tuple[CodePart, ...]) -> list[Site]:
    """Look for the one hypercall of a small kernel, or the one of each kind; a kernel with a hypercall page is left alone."""
    if kernel.notes.hypercall_page is not None or sum(part.end - part.start for part in code) > _SMALL:
        return []
    found = [(part, match) for part in code for match in _ANY.finditer(kernel.data, part.start, part.end)]
    if not found or len({match[0] for _, match in found}) != len(found):
        return []
    likely = {match.start(1) if match[1] else match.start() for part in code for match in _stubs(kernel, part)}
    if not all(match.start() in likely for _, match in found):
        return []
    return [Site(match.start() + part.to_paddr, match[0]) for part, match in found]


def _stubs(kernel: KernelImage, part: CodePart) -> Iterator[re.Match[bytes]]:
    return _STUB.finditer(kernel.data, part.start, part.end)
