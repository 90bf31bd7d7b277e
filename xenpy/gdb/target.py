"""A domain as a debugger sees it: what a session asks for, asked of a Debugger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from xenpy.domain.debugging import ONE_STEP, Debugger, Trap
from xenpy.domain.ending import End, Ending
from xenpy.errors import XenError
from xenpy.gdb import monitor
from xenpy.gdb.registers import REGISTERS, SEGMENTS, SYSTEM
from xenpy.gdb.session import Action, Stop, TargetError
from xenpy.kvm.constants import Sync

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xenpy.domain.domain import Domain
    from xenpy.domain.vcpu import Vcpu
    from xenpy.gdb.session import Actions
    from xenpy.loop import Loop

SOFTWARE, HARDWARE, WATCH_WRITE = 0, 1, 2
"""Kinds of breakpoints. Those of hardware are made of INT3, too; watchpoints for what is read there are none."""
_STOPS: Final = {
    Trap.BREAKPOINT: Stop.BREAKPOINT, Trap.STEP: Stop.TRAP, Trap.INTERRUPT: Stop.INTERRUPT, Trap.WATCHPOINT: Stop.WATCHPOINT,
}  # fmt: skip
_GVA_LIMIT: Final = 1 << 64
_ST_BYTES, _ST_STRIDE = 10, 16
_RFLAGS_FIXED: Final = 1 << 1
_INDEX: Final = {register.name: number for number, register in enumerate(REGISTERS)}
_TAG_EMPTY: Final = 3


class DomainTarget:
    """A domain that is debugged. `on_stop(reason, thread, gva)` and `on_end()` are called in the loop's thread."""

    def __init__(self, domain: Domain, on_stop: Callable[[Stop, int, int], None], on_end: Callable[[], None]) -> None:
        self._domain = domain
        self._debugger = Debugger(domain, lambda why, vcpu_id, gva: on_stop(_STOPS[why], vcpu_id + 1, gva), on_end)

    @property
    def loop(self) -> Loop:
        """Return the loop whose thread all this belongs to."""
        return self._domain.host.loop

    @property
    def ready(self) -> bool:
        """Tell whether the domain stands still, which `on_stop` has told."""
        return self._debugger.ready

    def attach(self) -> None:
        """Take hold of the domain, and stop it. Raises HostError."""
        self._debugger.attach()
        self._debugger.stop()

    def close(self) -> None:
        """Let go of the domain, whatever it does."""
        if self._domain.ending is not None or self._debugger.ready:
            self._debugger.release()
            return
        self._debugger.on_next_stop(self._debugger.release)
        self._debugger.stop()

    # -- threads ------------------------------------------------------------------------------------------------------

    def threads(self) -> Sequence[int]:
        """Return the numbers of the threads: all vCPUs, those as well that are not up."""
        return range(1, len(self._domain.vcpus) + 1)

    def _vcpu(self, thread: int) -> Vcpu:
        if thread not in self.threads():
            raise TargetError(f"there is no thread {thread}")
        return self._domain.vcpus[thread - 1]

    def thread_info(self, thread: int) -> str:
        """Return what there is to say of a thread in a few words."""
        vcpu = self._vcpu(thread)
        state = "offline" if not vcpu.is_up else "idle" if vcpu.is_idle else "busy"
        return f"vCPU {vcpu.vcpu_id}, {state}"

    # -- registers ----------------------------------------------------------------------------------------------------

    def read_registers(self, thread: int) -> Sequence[bytes]:
        """Return the values of REGISTERS, little-endian."""
        vcpu = self._vcpu(thread)
        regs, sregs, fpu = vcpu.kvm.regs, vcpu.kvm.sregs, vcpu.kvm.get_fpu()
        values: dict[str, int] = {"eflags": regs.rflags, "fs_base": sregs.fs.base, "gs_base": sregs.gs.base}
        values["cs"], values["ss"] = vcpu.segments
        values.update((name, getattr(sregs, name).selector) for name in SEGMENTS[2:])
        values.update((name, getattr(sregs, name)) for name in SYSTEM)
        values.update(_fpu_values(fpu))
        return [
            _bytes(values.get(register.name, getattr(regs, register.name, 0)), register.bits) for register in REGISTERS
        ]

    def write_registers(self, thread: int, values: dict[int, bytes]) -> None:
        """Set registers by their number in REGISTERS; control registers stay as they are."""
        vcpu = self._vcpu(thread)
        before = self.read_registers(thread)
        changed = {REGISTERS[number].name: data for number, data in values.items() if before[number] != data}
        fixed = [name for name in changed if name in SYSTEM or name in SEGMENTS]
        if fixed:
            raise TargetError(f"{', '.join(fixed)} cannot be written")
        fpu = None
        for name, data in changed.items():
            value = int.from_bytes(data, "little")
            if name == "eflags":
                vcpu.kvm.regs.rflags = value | _RFLAGS_FIXED
            elif name in ("fs_base", "gs_base"):
                getattr(vcpu.kvm.sregs, name[:2]).base = value
                vcpu.kvm.dirty(Sync.SREGS)
            elif _INDEX[name] > _INDEX["gs"]:
                fpu = fpu or vcpu.kvm.get_fpu()
                _set_fpu(fpu, name, data)
            else:
                setattr(vcpu.kvm.regs, name, value)
        vcpu.kvm.dirty(Sync.REGS)
        if fpu is not None:
            vcpu.kvm.set_fpu(fpu)

    # -- memory and breakpoints -----------------------------------------------------------------------------------------

    def read_memory(self, thread: int, gva: int, size: int) -> bytes:
        """Return memory, at least one byte, as far as there is some."""
        try:
            return self._debugger.read(self._vcpu(thread), _checked(gva), size)
        except XenError as error:
            raise TargetError(error.reason) from None

    def write_memory(self, thread: int, gva: int, data: bytes) -> None:
        """Write memory."""
        try:
            self._debugger.write(self._vcpu(thread), _checked(gva), data)
        except XenError as error:
            raise TargetError(error.reason) from None

    def insert(self, kind: int, thread: int, gva: int, size: int) -> bool:
        """Set a breakpoint or watchpoint; return False for a kind that cannot be had."""
        try:
            if kind in (SOFTWARE, HARDWARE):
                self._debugger.set_breakpoint(self._vcpu(thread), _checked(gva))
            elif kind == WATCH_WRITE:
                self._debugger.set_watchpoint(self._vcpu(thread), _checked(gva), size)
            else:
                return False
        except XenError as error:
            raise TargetError(error.reason) from None
        return True

    def remove(self, kind: int, thread: int, gva: int, size: int) -> bool:
        """Take a breakpoint or watchpoint away; return False for a kind that cannot be had."""
        del thread
        if kind in (SOFTWARE, HARDWARE):
            self._debugger.clear_breakpoint(gva)
        elif kind == WATCH_WRITE:
            self._debugger.watchpoints.clear(gva, size)
        else:
            return False
        return True

    # -- running ------------------------------------------------------------------------------------------------------

    def resume(self, actions: Actions) -> None:
        """Have threads go on, those that are named; the others stand still."""
        steps = {Action.CONTINUE: None, Action.STEP: ONE_STEP}
        self._debugger.resume(
            {thread - 1: steps[do] if isinstance(do, Action) else do for thread, do in actions.items()}
        )

    def interrupt(self) -> None:
        """Stop the domain."""
        self._debugger.stop()

    def detach(self) -> None:
        """Let the domain go on without a debugger."""
        self._debugger.release()

    def kill(self) -> None:
        """End the domain."""
        self._domain.end(Ending(End.DESTROYED, "by the debugger"))

    def monitor(self, command: str) -> str:
        """Carry out a command of ours and return what there is to say."""
        return monitor.answer(self._domain, command)


def _checked(gva: int) -> int:
    if gva >= _GVA_LIMIT:
        raise TargetError(f"{gva:#x} is no address")
    return gva


def _bytes(value: Any, bits: int) -> bytes:
    return (int(value) & (1 << bits) - 1).to_bytes(bits // 8, "little")


def _fpu_values(fpu: Any) -> dict[str, int]:
    registers, vectors = bytes(fpu.fpr), bytes(fpu.xmm)
    values = {
        f"st{number}": int.from_bytes(registers[number * _ST_STRIDE :][:_ST_BYTES], "little") for number in range(8)
    }
    values |= {f"xmm{number}": int.from_bytes(vectors[number * 16 :][:16], "little") for number in range(16)}
    tags = 0
    for number in range(8):  # of each pair GDB wants to know only whether it is empty
        tags |= 0 if fpu.ftwx >> number & 1 else _TAG_EMPTY << 2 * number
    return values | {
        "fctrl": fpu.fcw, "fstat": fpu.fsw, "ftag": tags, "fioff": fpu.last_ip, "fooff": fpu.last_dp, "fop": fpu.last_opcode,
        "mxcsr": fpu.mxcsr,
    }  # fmt: skip


def _set_fpu(fpu: Any, name: str, data: bytes) -> None:
    value = int.from_bytes(data, "little")
    if name.startswith("st"):
        start = int(name[2:]) * _ST_STRIDE
        fpu.fpr[start : start + _ST_BYTES] = list(data)
    elif name.startswith("xmm"):
        start = int(name[3:]) * 16
        fpu.xmm[start : start + 16] = list(data)
    elif name == "ftag":
        fpu.ftwx = sum(1 << number for number in range(8) if value >> 2 * number & 3 != _TAG_EMPTY)
    elif name in _FPU_FIELDS:
        setattr(fpu, _FPU_FIELDS[name], value & 0xFFFF if name in ("fctrl", "fstat", "fop") else value)


_FPU_FIELDS: Final = {
    "fctrl": "fcw", "fstat": "fsw", "fop": "last_opcode", "fioff": "last_ip", "fooff": "last_dp", "mxcsr": "mxcsr",
}  # fmt: skip
