"""A domain and a vCPU as hypercall handlers see them, over the state under test; guest-virtual is guest-physical."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from xenpy.abi._xen64 import ffi
from xenpy.abi.event_channel import DOMID_SELF
from xenpy.errors import Errno, XenError
from xenpy.hypercalls.call import Call
from xenpy.hypercalls.dispatch import dispatch

if TYPE_CHECKING:
    from xenpy.abi.op import Op
    from xenpy.memory import GuestMemory

ARGUMENT = 0x7000
"""Where `Caller` puts the arguments of its hypercalls."""


class Caller:
    """Makes hypercalls as a guest in 64- or 32-bit mode."""

    def __init__(self, memory: GuestMemory, *, wide: bool = True, is_pv: bool = False, **state: Any) -> None:
        self.logged: list[str] = []
        self.checkpoints = 0
        self.wide = wide
        self.memory = memory
        self.domain: Any = SimpleNamespace(
            domid=1,
            is_pv=is_pv,
            memory=memory,
            peer=self._peer,
            log=lambda _key, text: self.logged.append(text),
            **state,
        )
        self.vcpu: Any = SimpleNamespace(vcpu_id=0, translate=self._translate)

    def _translate(self, gva: int, **_access: bool) -> int:
        return gva

    def _peer(self, domid: int) -> object:
        if domid not in (1, 2, DOMID_SELF):
            raise XenError(Errno.ESRCH)
        return self.domain

    def _checkpoint(self) -> None:
        self.checkpoints += 1

    def call(self, number: int, *args: int) -> int:
        """Make a hypercall; return its register."""
        made = Call(self.domain, self.vcpu, number, (*args, 0, 0, 0), wide=self.wide, checkpoint=self._checkpoint)
        return dispatch(made)

    def op(self, number: int, op: Op, gva: int = ARGUMENT, **fields: Any) -> tuple[int, Any]:
        """Make a hypercall on one structure; return its register, and the structure as the guest finds it afterwards."""
        (result, (after, *_)) = self.ops(number, op, [fields], gva)
        return result, after

    def ops(self, number: int, op: Op, elements: list[dict[str, Any]], gva: int = ARGUMENT) -> tuple[int, list[Any]]:
        """Make a hypercall on an array of structures."""
        copier = Call(self.domain, self.vcpu, number, (), wide=self.wide)
        stride = copier.struct_size(op.struct)
        for index, fields in enumerate(elements):
            value = ffi.new(f"struct {op.struct} *", fields)
            copier.store(op.struct, gva + index * stride, value)
        result = self.call(number, op.number, gva, len(elements))
        return result, [copier.struct(op.struct, gva + index * stride) for index in range(len(elements))]
