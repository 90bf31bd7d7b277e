"""Names for the instructions that KVM's emulators stumble over."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpy.kvm.constants import InternalError
from xenpy.kvm.exits import internal_error, mnemonic


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("0fae00", "fxsave (%rax)"),
        ("480fae07", "fxsave64 (%rdi)"),
        ("0fae27", "xsave (%rdi)"),
        ("480fae2f", "xrstor64 (%rdi)"),
        ("0fae7d08", "clflush memory"),
        ("0fae3c24", "clflush memory"),
        ("0fae3d00000000", "clflush memory"),
        ("0fc70e", "cmpxchg8b (%rsi)"),
        ("f0480fc70e", "cmpxchg16b (%rsi)"),
        ("480fc726", "xsavec64 (%rsi)"),
        ("0fa2", "cpuid"),
        ("0f0b", "ud2"),
        ("cc", "int3"),
        ("f3cd80", "int"),
        ("48cf", "iret"),
        ("c5f877", "a vector instruction (c5 f8 77)"),
        ("90", "90"),
        ("0faee8", "0f ae e8"),  # lfence: the register form is another instruction
        ("", "(no bytes)"),
        ("f0", "f0"),
        ("4148", "41 48"),
        ("0f", "0f"),
        ("0fae", "0f ae"),
    ],
)
def test_instructions_have_names(code: str, name: str) -> None:
    assert mnemonic(bytes.fromhex(code)) == name


@given(st.binary(max_size=15))
def test_any_bytes_have_a_name(code: bytes) -> None:
    assert mnemonic(code)


def vcpu(suberror: int, *, code: bytes = b"", ndata: int = 4, flags: int = 1) -> SimpleNamespace:
    failure = SimpleNamespace(ndata=ndata, flags=flags, insn_size=len(code), insn_bytes=code.ljust(15, b"\0"))
    run = SimpleNamespace(internal=SimpleNamespace(suberror=suberror), emulation_failure=failure)
    return SimpleNamespace(run=run, regs=SimpleNamespace(rip=0xFFFF_FFFF_8100_0000))


def test_internal_errors_say_what_and_where() -> None:
    code = bytes.fromhex("0fae00")
    assert internal_error(vcpu(1, code=code)) == "KVM could not emulate `fxsave (%rax)` at rip 0xffffffff81000000"
    unknown = "KVM could not emulate the instruction at rip 0xffffffff81000000"
    assert internal_error(vcpu(1, code=code, flags=0)) == internal_error(vcpu(1, code=code, ndata=0)) == unknown
    for suberror in (*InternalError, 5, 1 << 31):
        text = internal_error(vcpu(suberror))
        assert text.endswith(" at rip 0xffffffff81000000")
        assert "KVM:  at" not in text
