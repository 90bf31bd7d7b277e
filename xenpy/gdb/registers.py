"""The registers of a vCPU in the order in which GDB sees them, and their description for it.

Ref: GDB manual, appendix G.5.16, "i386 Features"
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Register(NamedTuple):
    """One register."""

    name: str
    bits: int
    type: str
    group: str = ""


_GENERAL: Final = (
    "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
_POINTERS: Final = frozenset(("rbp", "rsp"))
SEGMENTS: Final = ("cs", "ss", "ds", "es", "fs", "gs")
_X87_CONTROL: Final = ("fctrl", "fstat", "ftag", "fiseg", "fioff", "foseg", "fooff", "fop")
SYSTEM: Final = ("cr0", "cr2", "cr3", "cr4")
"""These can be read only."""
_XMM: Final = 16
_FLAGS: Final = {
    "": 1, "CF": 0, "PF": 2, "AF": 4, "ZF": 6, "SF": 7, "TF": 8, "IF": 9, "DF": 10, "OF": 11, "NT": 14, "RF": 16, "VM": 17, "AC": 18,
}  # fmt: skip

FEATURES: Final[dict[str, tuple[Register, ...]]] = {
    "org.gnu.gdb.i386.core": (
        *(Register(name, 64, "data_ptr" if name in _POINTERS else "int64") for name in _GENERAL),
        Register("rip", 64, "code_ptr"),
        Register("eflags", 32, "i386_eflags"),
        *(Register(name, 32, "int32") for name in SEGMENTS),
        *(Register(f"st{number}", 80, "i387_ext") for number in range(8)),
        *(Register(name, 32, "int", "float") for name in _X87_CONTROL),
    ),
    "org.gnu.gdb.i386.sse": (
        *(Register(f"xmm{number}", 128, "vec128") for number in range(_XMM)),
        Register("mxcsr", 32, "int", "vector"),
    ),
    "org.gnu.gdb.i386.segments": (Register("fs_base", 64, "int"), Register("gs_base", 64, "int")),
    "org.xenpy.system": tuple(Register(name, 64, "int64", "system") for name in SYSTEM),
}
REGISTERS: Final = tuple(register for registers in FEATURES.values() for register in registers)

_VECTOR_TYPES: Final = """
<vector id="v4f" type="ieee_single" count="4"/><vector id="v2d" type="ieee_double" count="2"/>
<vector id="v16i8" type="int8" count="16"/><vector id="v8i16" type="int16" count="8"/>
<vector id="v4i32" type="int32" count="4"/><vector id="v2i64" type="int64" count="2"/>
<union id="vec128"><field name="v4_float" type="v4f"/><field name="v2_double" type="v2d"/>
<field name="v16_int8" type="v16i8"/><field name="v8_int16" type="v8i16"/><field name="v4_int32" type="v4i32"/>
<field name="v2_int64" type="v2i64"/><field name="uint128" type="uint128"/></union>
"""


def description() -> str:
    """Return target.xml."""
    flags = "".join(f'<field name="{name}" start="{bit}" end="{bit}"/>' for name, bit in _FLAGS.items())
    types = {
        "org.gnu.gdb.i386.core": f'<flags id="i386_eflags" size="4">{flags}</flags>',
        "org.gnu.gdb.i386.sse": _VECTOR_TYPES,
    }
    features = "".join(
        f'<feature name="{name}">{types.get(name, "")}{"".join(map(_line, registers))}</feature>\n'
        for name, registers in FEATURES.items()
    )
    return (
        '<?xml version="1.0"?>\n<!DOCTYPE target SYSTEM "gdb-target.dtd">\n'
        f"<target><architecture>i386:x86-64</architecture>\n{features}</target>\n"
    )


def _line(register: Register) -> str:
    group = f' group="{register.group}"' if register.group else ""
    return f'<reg name="{register.name}" bitsize="{register.bits}" type="{register.type}"{group}/>'
