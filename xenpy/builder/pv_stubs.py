"""The hypercall page of a 64-bit PV guest: a stub a hypercall, so that a kernel need not know how its Xen is entered.

Kernels without XEN_ELFNOTE_HYPERCALL_PAGE execute the same instructions in line.

Ref: xen/include/public/arch-x86/xen-x86_64.h (numbers, registers, struct iret_context), AMD64 APM volume 3 (encodings)
"""

from __future__ import annotations

from typing import Final

from xenpy.memory import PAGE_SIZE

STUB_SIZE: Final = 32
IRET: Final = 23
"""__HYPERVISOR_iret, which finds its operands on the stack and does not come back."""

_PUSH_RCX: Final = b"\x51"
_PUSH_R11: Final = b"\x41\x53"
_PUSH_RAX: Final = b"\x50"
_MOV_EAX: Final = b"\xb8"
_SYSCALL: Final = b"\x0f\x05"
_POP_R11: Final = b"\x41\x5b"
_POP_RCX: Final = b"\x59"
_RET: Final = b"\xc3"
_INT3: Final = b"\xcc"


def pv_hypercall_page() -> bytes:
    """Return the page of 128 stubs of 32 bytes; what no stub uses traps.

    SYSCALL overwrites RCX and R11, so a stub keeps them. That of iret pushes what struct iret_context begins with instead.
    """
    return b"".join(_stub(number).ljust(STUB_SIZE, _INT3) for number in range(PAGE_SIZE // STUB_SIZE))


def _stub(number: int) -> bytes:
    call = _MOV_EAX + number.to_bytes(4, "little") + _SYSCALL
    if number == IRET:
        return _PUSH_RCX + _PUSH_R11 + _PUSH_RAX + call
    return _PUSH_RCX + _PUSH_R11 + call + _POP_R11 + _POP_RCX + _RET
