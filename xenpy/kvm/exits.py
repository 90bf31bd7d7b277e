"""Words for the exits that mean KVM could not go on."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from xenpy.kvm.constants import Exit, InternalError

if TYPE_CHECKING:
    from xenpy.kvm.vcpu import KvmVcpu

_FLAG_INSTRUCTION_BYTES: Final = 1
_REGISTERS: Final = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi")
_PREFIXES: Final = frozenset((0x66, 0x67, 0xF0, 0xF2, 0xF3, 0x2E, 0x36, 0x3E, 0x26, 0x64, 0x65))
# Instructions that interpreters of ring 0 are known to lack: (opcode bytes, ModRM reg field or None) -> mnemonic
_GROUPS: Final = {
    (0x0FAE, 0): "fxsave", (0x0FAE, 1): "fxrstor", (0x0FAE, 2): "ldmxcsr", (0x0FAE, 3): "stmxcsr", (0x0FAE, 4): "xsave",
    (0x0FAE, 5): "xrstor", (0x0FAE, 6): "xsaveopt", (0x0FAE, 7): "clflush", (0x0FC7, 1): "cmpxchg16b", (0x0FC7, 3): "xrstors",
    (0x0FC7, 4): "xsavec", (0x0FC7, 5): "xsaves",
}  # fmt: skip
_PLAIN: Final = {0xCC: "int3", 0xCD: "int", 0xCF: "iret", 0x0F01: "group 7", 0x0F0B: "ud2", 0x0FA2: "cpuid"}


def mnemonic(code: bytes) -> str:
    """Name an instruction if it is one that KVM's emulators stumble over, else return its bytes in hexadecimal."""
    index, wide = 0, False
    while index < len(code) and code[index] in _PREFIXES:
        index += 1
    if index < len(code) and code[index] & 0xF0 == 0x40:
        wide = bool(code[index] & 8)
        index += 1
    if index >= len(code):
        return code.hex(" ") or "(no bytes)"
    opcode = code[index]
    if opcode == 0x0F and index + 1 < len(code):
        opcode = 0x0F00 | code[index + 1]
        index += 1
    if opcode in (0xC4, 0xC5, 0x62):
        return f"a vector instruction ({code.hex(' ')})"
    if index + 1 < len(code):
        modrm = code[index + 1]
        name = _GROUPS.get((opcode, modrm >> 3 & 7))
        if name is not None and modrm >> 6 != 3:
            if name == "cmpxchg16b" and not wide:
                name = "cmpxchg8b"
            suffix = "64" if wide and name != "cmpxchg16b" else ""
            operand = f"(%{_REGISTERS[modrm & 7]})" if modrm >> 6 == 0 and modrm & 7 not in (4, 5) else "memory"
            return f"{name}{suffix} {operand}"
    return _PLAIN.get(opcode, code.hex(" "))


def internal_error(vcpu: KvmVcpu) -> str:
    """Describe an Exit.INTERNAL_ERROR: what KVM could not do, and where."""
    run = vcpu.run
    rip = int(vcpu.regs.rip)
    suberror = int(run.internal.suberror)
    if suberror == InternalError.EMULATION:
        failure = run.emulation_failure
        if failure.ndata >= 3 and failure.flags & _FLAG_INSTRUCTION_BYTES:
            code = bytes(failure.insn_bytes[0 : min(15, int(failure.insn_size))])
            return f"KVM could not emulate `{mnemonic(code)}` at rip {rip:#x}"
        return f"KVM could not emulate the instruction at rip {rip:#x}"
    names = {
        InternalError.SIMUL_EX: "exceptions arose while another was being handled",
        InternalError.DELIVERY_EV: "an event could not be delivered to the guest",
        InternalError.UNEXPECTED_EXIT_REASON: "the processor left the guest for a reason KVM does not know",
    }
    text = names.get(InternalError(suberror), "") if suberror in (1, 2, 3, 4) else f"internal error {suberror}"
    return f"KVM: {text} at rip {rip:#x}"


def unexpected(vcpu: KvmVcpu, reason: int) -> str:
    """Describe what `KvmVcpu.enter` returned when nobody knows what to do about it: an exit reason, or -errno."""
    if reason >= 0:
        return f"KVM left the guest for reason {reason}, which xenpy does not know"
    fault = vcpu.run.memory_fault if vcpu.run.exit_reason == Exit.MEMORY_FAULT else None
    where = f" at gpa {int(fault.gpa):#x}" if fault is not None else f", rip {int(vcpu.regs.rip):#x}"
    return f"KVM_RUN failed with {errno.errorcode.get(-reason, reason)}{where}"
