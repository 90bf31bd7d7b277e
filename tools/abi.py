#!/usr/bin/env python3
"""Generate xenpy/abi/_*.py from the C text in xenpy/abi/cdef.

`python tools/abi.py` rewrites them; `--check` only tells whether they are fresh (exit 1 if not). Hypercall arguments have two layouts: LP64, which
becomes a cffi module, and i386, where longs and handles are 32 bits wide and nothing aligns to more than 4 bytes. The latter becomes a
table of field offsets by which dispatch converts an argument to the 64-bit structure and back, so that handlers know only one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cffi

ABI = Path(__file__).resolve().parent.parent / "xenpy" / "abi"
XEN_FILES = (
    "xen.h", "memory.h", "event_channel.h", "sched.h", "vcpu.h", "version.h", "grant_table.h", "hvm_op.h", "physdev.h",
    "callback.h", "start_info.h", "hvm_vcpu.h",
)  # fmt: skip
WORDS = "typedef uint{0}_t xen_ulong_t; typedef uint{0}_t xen_pfn_t; typedef uint{0}_t xen_handle_t;\n"
PV64_ONLY = "xen64.h"


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
    lines = ['"""i386 layouts of Xen\'s structures, by tools/abi.py: offsets and sizes in bytes, a byte array\'s size negative."""', ""]
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


def modules() -> dict[str, str]:
    """Return the source of every generated module by name."""
    return {
        "_libc": cffi_module("_libc", text_of("libc.h")),
        "_kvm": cffi_module("_kvm", text_of("kvm.h")),
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
