from __future__ import annotations

import shutil
import struct
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from builder_images import (
    KERNEL_AT,
    PHYS32_ENTRY,
    SHF_ALLOC,
    SHF_EXECINSTR,
    SHT_PROGBITS,
    Load,
    Section,
    elf,
    note,
    pvh_elf,
    symbols,
)

from xenpy.builder import patch
from xenpy.builder.kernel import load_kernel
from xenpy.builder.patch import VMCALL, VMMCALL, Site, find_hypercall_sites
from xenpy.cache import cache_directory
from xenpy.errors import ConfigError
from xenpy.guests import GUESTS, provide
from xenpy.memory import GuestMemory

if TYPE_CHECKING:
    from pathlib import Path

RET = b"\xc3"
NOP16 = b"\x0f\x1f\x84\0\0\0\0\0"
ENDBR64, ENDBR32 = bytes.fromhex("f30f1efa"), bytes.fromhex("f30f1efb")
BIG = bytes(patch._SMALL)  # too large for the search that small kernels get
DECOYS = b"\x31\xd2" + VMCALL + b"\xeb\x1d\x48" + VMMCALL + b"\xeb\x09" + VMMCALL + b"\x48\x8b" + VMCALL + b"\xc3\x55"


@pytest.fixture
def sites_of(tmp_path):
    def sites_of(code: bytes, **options: Any) -> list[Site]:
        path = tmp_path / "kernel"
        path.write_bytes(pvh_elf(code, **options))
        with load_kernel(path) as kernel:
            return find_hypercall_sites(kernel)

    return sites_of


def jump(at: int, target: int) -> bytes:
    return b"\xe9" + struct.pack("<i", target - at - 5)


def pair(
    first: bytes,
    second: bytes,
    *,
    prefix: bytes = b"",
    thunk: int | None = 0x8000,
    gap: bytes = NOP16,
    start: int = 0x100,
) -> bytes:
    """Return code with two functions from `start` on that return through a thunk, or by RET if there is none."""
    code = bytearray(start)
    for index, instruction in enumerate((first, second)):
        code += (gap if index else b"") + prefix + instruction
        code += RET if thunk is None else jump(len(code), thunk)
    return bytes(code)


def where(code: bytes, instruction: bytes, start: int = 0) -> Site:
    return Site(KERNEL_AT + code.index(instruction, start), instruction)


@pytest.mark.parametrize("thunk", [None, 0x8000])
@pytest.mark.parametrize("prefix", [b"", ENDBR64, ENDBR32])
@pytest.mark.parametrize(
    "gap", [b"", b"\xcc" * 12, b"\x90" * 16, b"\x66\x66\x2e" + NOP16 + b"\x90" * 32, b"\x0f\x1f\x40\0\x66\x90"]
)
@pytest.mark.parametrize("order", [(VMMCALL, VMCALL), (VMCALL, VMMCALL)])
def test_pair_among_decoys(sites_of, thunk, prefix, gap, order):
    code = DECOYS + pair(*order, prefix=prefix, thunk=thunk, gap=gap) + DECOYS
    expected = [where(code, instruction, 0x100 + len(DECOYS)) for instruction in order]
    assert sites_of(code + BIG) == expected


@pytest.mark.parametrize(
    "code",
    [
        DECOYS,
        pair(VMMCALL, VMMCALL),
        pair(VMMCALL, VMCALL, gap=b"\x55"),  # an instruction between them
        pair(VMMCALL, VMCALL, gap=b"\xcc" * 200),
        bytes(16) + VMMCALL + jump(19, 0x8000) + VMCALL + jump(27, 0x9000),  # another thunk
        pair(VMMCALL, VMCALL) + pair(VMMCALL, VMCALL),  # two pairs: which?
        bytes(64),
    ],
)
def test_nothing_is_taken_for_sure(sites_of, code):
    assert sites_of(code + BIG) == []


def test_padding_made_to_be_slow_is_not(sites_of):
    gap = (b"\x2e" * 4 + b"\x0f\x1f\0") * 15 + b"\x55"
    assert sites_of(pair(VMMCALL, VMCALL, gap=gap) + BIG) == []


def test_only_code_is_searched(tmp_path):
    code, data = pair(VMMCALL, VMCALL) + BIG, pair(VMMCALL, VMCALL)
    path = tmp_path / "kernel"
    path.write_bytes(elf([Load(KERNEL_AT, code), Load(0x900000, data, flags=6)], note(PHYS32_ENTRY, KERNEL_AT)))
    assert [site.paddr for site in find_hypercall_sites(load_kernel(path))] == [KERNEL_AT + 0x100, KERNEL_AT + 0x110]
    sections = [
        Section(".text", SHT_PROGBITS, flags=SHF_ALLOC | SHF_EXECINSTR, inside=(0, 0, len(code))),
        Section(
            ".altinstr_replacement", SHT_PROGBITS, flags=SHF_ALLOC | SHF_EXECINSTR, inside=(0, len(code), len(data))
        ),
        Section(".rodata", SHT_PROGBITS, flags=SHF_ALLOC, inside=(0, len(code) + len(data), len(data))),
    ]
    path.write_bytes(elf([Load(KERNEL_AT, code + data + data)], note(PHYS32_ENTRY, KERNEL_AT), sections=sections))
    assert [site.paddr for site in find_hypercall_sites(load_kernel(path))] == [KERNEL_AT + 0x100, KERNEL_AT + 0x110]


@pytest.mark.parametrize("bits", [32, 64])
def test_symbols_decide_between_pairs(tmp_path, bits):
    wanted, vaddr = pair(VMMCALL, VMCALL, prefix=ENDBR64), 0xC0000000
    code = pair(VMMCALL, VMCALL) + wanted + BIG
    begin = len(pair(VMMCALL, VMCALL)) + 0x100
    names = {"xen_hypercall_amd": vaddr + begin, "xen_hypercall_intel": vaddr + begin + len(wanted[0x100:]) // 2 + 4}
    path = tmp_path / "kernel"
    loads = [Load(KERNEL_AT, code, vaddr=vaddr)]
    path.write_bytes(elf(loads, note(PHYS32_ENTRY, KERNEL_AT), bits=bits, sections=symbols(names, bits=bits, strtab=2)))
    sites = find_hypercall_sites(load_kernel(path))
    assert sites == [where(code, VMMCALL, begin), where(code, VMCALL, begin)]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (bytes(32) + VMMCALL + RET, [32]),
        (bytes(32) + VMCALL + b"\x41\x5a\x5f\xc3", [32]),  # pop r10; pop rdi; ret
        (b"\xb8\x11\0\0\0\x31\xff" + VMMCALL + b"\x48\x85\xc0", [7]),  # mov $17, %eax; xor %edi, %edi; vmmcall; test
        (bytes(32) + VMMCALL + RET + bytes(300) + VMCALL + RET, [32, 336]),
        (bytes(32) + VMMCALL + RET + VMMCALL + RET, []),  # two of a kind
        (bytes(32) + VMMCALL + bytes(8), []),  # nothing around it speaks for it
        (b"\xb8\x11\0\0\1" + VMMCALL + bytes(8), []),  # too large a number for a hypercall
        (bytes(32) + VMMCALL + RET + bytes(300) + VMCALL + b"\x55", []),
    ],
)
def test_small_kernels(sites_of, code, expected):
    assert [site.paddr - KERNEL_AT for site in sites_of(code)] == expected


def test_small_kernel_with_a_hypercall_page_is_left_alone(sites_of):
    assert sites_of(bytes(32) + VMMCALL + RET, extra=note(2, 0x1000)) == []


def test_apply_puts_out_and_nop():
    memory = GuestMemory()
    memory.add_ram(0, 1 << 20)
    memory.write(0x1100, b"\x11" + VMMCALL + b"\x22")
    site = Site(0x101, VMMCALL)
    patch.apply(memory, [site], 0xE5, moved=0x1000)
    assert memory.read(0x1100, 5) == b"\x11\xe7\xe5\x90\x22"
    with pytest.raises(ConfigError, match="0f01d9 at 0x1101"):
        patch.apply(memory, [site], 0xE5, moved=0x1000)
    memory.close()


def available(name: str) -> Path:
    """Return a distribution's kernel if it is in the cache: fetching is for `make`, not for unit tests."""
    if not (cache_directory("guests") / name).exists():
        pytest.skip(f"kernel {name} is not in the cache (tools/guests.py fetches it)")
    return provide(name).kernel


@pytest.mark.parametrize("name", GUESTS)
def test_distribution_kernels(name, tmp_path):
    """The bytes around the sites must disassemble to Linux's two functions, both called by their dispatcher just before."""
    with load_kernel(available(name)) as kernel:
        sites = find_hypercall_sites(kernel)
        assert sorted(site.code for site in sites) == [VMCALL, VMMCALL]
        assert abs(sites[0].paddr - sites[1].paddr) <= 64
        if shutil.which("objdump") is None:
            pytest.skip("objdump is not installed (package binutils)")
        (segment,) = [each for each in kernel.elf.loadable if each.paddr <= sites[0].paddr < each.paddr + each.filesz]
        start = min(site.paddr for site in sites) - 0x60
        end = max(site.paddr for site in sites) + 8
        (tmp_path / "code").write_bytes(
            kernel.data[start - segment.paddr + segment.offset : end - segment.paddr + segment.offset]
        )
    command = ["objdump", "-D", "-b", "binary", "-m", "i386:x86-64", f"--adjust-vma={start:#x}", tmp_path / "code"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    amd, intel = (next(site.paddr for site in sites if site.code == code) for code in (VMMCALL, VMCALL))
    for gpa, name in ((amd, "vmmcall"), (intel, "vmcall")):
        assert f"{gpa:8x}:\t" in text
        assert name in text.split(f"{gpa:8x}:\t")[1].splitlines()[0]
    targets = {int(line.split()[-1], 16) for line in text.splitlines() if "\tje " in line or "\tjmp " in line}
    assert {amd, intel} <= targets | {target + len(ENDBR64) for target in targets}
