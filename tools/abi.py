#!/usr/bin/env python3
"""Generate xenpy/abi/_*.py from the C text in xenpy/abi/cdef.

`python tools/abi.py` rewrites them; `--check` only tells whether they are fresh (exit 1 if not).

Hypercall arguments have two layouts: LP64, which
becomes a cffi module, and i386, where longs and handles are 32 bits wide and nothing aligns to more than 4 bytes. The latter becomes a
table of field offsets by which dispatch converts an argument to the 64-bit structure and back, so that handlers know only one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cffi

if TYPE_CHECKING:
    from collections.abc import Iterator

ABI = Path(__file__).resolve().parent.parent / "xenpy" / "abi"
XEN_FILES = (
    "xen.h", "memory.h", "event_channel.h", "sched.h", "vcpu.h", "version.h", "grant_table.h", "hvm_op.h", "physdev.h",
    "callback.h", "start_info.h", "hvm_vcpu.h",
)  # fmt: skip
WORDS = "typedef uint{0}_t xen_ulong_t; typedef uint{0}_t xen_pfn_t; typedef uint{0}_t xen_handle_t;\n"
PV64_ONLY = "xen64.h"
KVMIO = 0xAE
# Ref: linux/kvm.h: name -> (direction, number, structure); a request without structure passes a number, or nothing, by value.
KVM_IOCTLS: dict[str, tuple[str, int, str]] = {
    "KVM_GET_API_VERSION": ("", 0x00, ""),
    "KVM_CREATE_VM": ("", 0x01, ""),
    "KVM_CHECK_EXTENSION": ("", 0x03, ""),
    "KVM_GET_VCPU_MMAP_SIZE": ("", 0x04, ""),
    "KVM_GET_SUPPORTED_CPUID": ("rw", 0x05, "kvm_cpuid2"),
    "KVM_CREATE_VCPU": ("", 0x41, ""),
    "KVM_SET_USER_MEMORY_REGION": ("w", 0x46, "kvm_userspace_memory_region"),
    "KVM_SET_TSS_ADDR": ("", 0x47, ""),
    "KVM_SET_IDENTITY_MAP_ADDR": ("w", 0x48, "uint64_t"),
    "KVM_SET_GSI_ROUTING": ("w", 0x6A, "kvm_irq_routing"),
    "KVM_IRQFD": ("w", 0x76, "kvm_irqfd"),
    "KVM_IOEVENTFD": ("w", 0x79, "kvm_ioeventfd"),
    "KVM_XEN_HVM_CONFIG": ("w", 0x7A, "kvm_xen_hvm_config"),
    "KVM_SET_CLOCK": ("w", 0x7B, "kvm_clock_data"),
    "KVM_GET_CLOCK": ("r", 0x7C, "kvm_clock_data"),
    "KVM_RUN": ("", 0x80, ""),
    "KVM_GET_REGS": ("r", 0x81, "kvm_regs"),
    "KVM_SET_REGS": ("w", 0x82, "kvm_regs"),
    "KVM_GET_SREGS": ("r", 0x83, "kvm_sregs"),
    "KVM_SET_SREGS": ("w", 0x84, "kvm_sregs"),
    "KVM_TRANSLATE": ("rw", 0x85, "kvm_translation"),
    "KVM_INTERRUPT": ("w", 0x86, "kvm_interrupt"),
    "KVM_GET_MSRS": ("rw", 0x88, "kvm_msrs"),
    "KVM_SET_MSRS": ("w", 0x89, "kvm_msrs"),
    "KVM_GET_FPU": ("r", 0x8C, "kvm_fpu"),
    "KVM_SET_FPU": ("w", 0x8D, "kvm_fpu"),
    "KVM_GET_LAPIC": ("r", 0x8E, "kvm_lapic_state"),
    "KVM_SET_LAPIC": ("w", 0x8F, "kvm_lapic_state"),
    "KVM_SET_CPUID2": ("w", 0x90, "kvm_cpuid2"),
    "KVM_GET_MP_STATE": ("r", 0x98, "kvm_mp_state"),
    "KVM_SET_MP_STATE": ("w", 0x99, "kvm_mp_state"),
    "KVM_NMI": ("", 0x9A, ""),
    "KVM_SET_GUEST_DEBUG": ("w", 0x9B, "kvm_guest_debug"),
    "KVM_GET_VCPU_EVENTS": ("r", 0x9F, "kvm_vcpu_events"),
    "KVM_SET_VCPU_EVENTS": ("w", 0xA0, "kvm_vcpu_events"),
    "KVM_GET_DEBUGREGS": ("r", 0xA1, "kvm_debugregs"),
    "KVM_SET_DEBUGREGS": ("w", 0xA2, "kvm_debugregs"),
    "KVM_SET_TSC_KHZ": ("", 0xA2, ""),
    "KVM_GET_TSC_KHZ": ("", 0xA3, ""),
    "KVM_ENABLE_CAP": ("w", 0xA3, "kvm_enable_cap"),
    "KVM_GET_XSAVE": ("r", 0xA4, "kvm_xsave"),
    "KVM_SET_XSAVE": ("w", 0xA5, "kvm_xsave"),
    "KVM_SIGNAL_MSI": ("w", 0xA5, "kvm_msi"),
    "KVM_GET_XCRS": ("r", 0xA6, "kvm_xcrs"),
    "KVM_SET_XCRS": ("w", 0xA7, "kvm_xcrs"),
    "KVM_KVMCLOCK_CTRL": ("", 0xAD, ""),
    "KVM_X86_SET_MSR_FILTER": ("w", 0xC6, "kvm_msr_filter"),
    "KVM_XEN_HVM_SET_ATTR": ("w", 0xC9, "kvm_xen_hvm_attr"),
    "KVM_XEN_VCPU_GET_ATTR": ("rw", 0xCA, "kvm_xen_vcpu_attr"),
    "KVM_XEN_VCPU_SET_ATTR": ("w", 0xCB, "kvm_xen_vcpu_attr"),
    "KVM_XEN_HVM_EVTCHN_SEND": ("w", 0xD0, "kvm_irq_routing_xen_evtchn"),
}
# These structures end in an array whose length the request's number does not count; ours have room for a fixed number of entries.
KVM_HEADER_SIZES = {"kvm_cpuid2": 8, "kvm_msrs": 8, "kvm_irq_routing": 8}


def text_of(*names: str) -> str:
    """Return the C text of the named files of cdef/."""
    return "\n".join((ABI / "cdef" / name).read_text() for name in names)


def cffi_module(name: str, text: str) -> str:
    """Return the source of a cffi out-of-line ABI-mode module."""
    builder = cffi.FFI()
    builder.cdef(text)
    builder.set_source(f"xenpy.abi.{name}", None)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / f"{name}.py"
        builder.emit_python_code(str(path))
        return path.read_text()


def leaves(ffi: cffi.FFI, ctype: Any, path: str, offset: int) -> Iterator[tuple[str, int, int]]:
    """Yield (field path, offset, size) of every scalar and byte array of a structure; a size is negative for a byte array."""
    if ctype.kind in ("struct", "union"):
        for name, field in ctype.fields:
            dotted = f"{path}.{name}" if path and name else path + name
            yield from leaves(ffi, field.type, dotted, offset + field.offset)
    elif ctype.kind == "array" and ffi.sizeof(ctype.item) == 1:
        yield path, offset, -ffi.sizeof(ctype)
    elif ctype.kind == "array":
        for index in range(ctype.length):
            yield from leaves(ffi, ctype.item, f"{path}[{index}]", offset + index * ffi.sizeof(ctype.item))
    else:
        yield path, offset, ffi.sizeof(ctype)


def layout32() -> str:
    """Return the source of the i386 layout table: {structure: (size, ((path, offset32, size32, offset64, size64), ...))}."""
    narrow, wide = cffi.FFI(), cffi.FFI()
    narrow.cdef(WORDS.format(32) + text_of(*XEN_FILES), pack=4)
    wide.cdef(WORDS.format(64) + text_of(*XEN_FILES))
    structs = sorted({name for group in narrow.list_types()[1:2] for name in group})
    lines = [
        '"""i386 layouts of Xen\'s structures, by tools/abi.py: offsets and sizes in bytes, a byte array\'s size negative."""',
        "",
    ]
    lines.append("LAYOUTS = {")
    for name in structs:
        tag = f"struct {name}"
        rows = []
        for (path, o32, s32), (_, o64, s64) in zip(
            leaves(narrow, narrow.typeof(tag), "", 0), leaves(wide, wide.typeof(tag), "", 0), strict=True
        ):
            rows.append((path, o32, s32, o64, s64))
        lines.append(f"    {tag!r}: ({narrow.sizeof(tag)}, {tuple(rows)!r}),")
    lines.append("}")
    return "\n".join(lines) + "\n"


def ioctls() -> str:
    """Return the source of the ioctl numbers."""
    from ioctl_opt import IO, IOC, IOC_READ, IOC_WRITE

    ffi = cffi.FFI()
    ffi.cdef(text_of("kvm.h"))
    lines = ['"""KVM\'s ioctl numbers, by tools/abi.py. Ref: linux/kvm.h"""', "", "from typing import Final", ""]
    for name, (direction, number, struct) in KVM_IOCTLS.items():
        if not direction:
            value = IO(KVMIO, number)
        else:
            size = KVM_HEADER_SIZES.get(struct) or ffi.sizeof(struct if struct.endswith("_t") else f"struct {struct}")
            flags = (IOC_READ if "r" in direction else 0) | (IOC_WRITE if "w" in direction else 0)
            value = IOC(flags, KVMIO, number, size)
        lines.append(f"{name}: Final = {value:#010x}")
    return "\n".join(lines) + "\n"


def modules() -> dict[str, str]:
    """Return the source of every generated module by name."""
    return {
        "_libc": cffi_module("_libc", text_of("libc.h")),
        "_kvm": cffi_module("_kvm", text_of("kvm.h")),
        "_kvm_ioctl": ioctls(),
        "_xen64": cffi_module("_xen64", WORDS.format(64) + text_of(*XEN_FILES, PV64_ONLY)),
        "_xen32": layout32(),
    }


def main() -> int:
    """Write or check every generated module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a module is stale")
    check = parser.parse_args().check
    stale = []
    for name, source in modules().items():
        path = ABI / f"{name}.py"
        if not path.exists() or path.read_text() != source:
            stale.append(name)
            if not check:
                path.write_text(source)
    for name in stale:
        print(f"{'stale' if check else 'wrote'}: xenpy/abi/{name}.py")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
