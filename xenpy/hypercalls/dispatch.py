"""Dispatch: from a hypercall number to the handler that its module declared, doing once what every handler needs.

Arguments are copied in before the handler runs and copied back only when it succeeds; a XenError becomes a negative errno; an unknown
command is -ENOSYS.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from xenpy.errors import Errno, XenError

if TYPE_CHECKING:
    from xenpy.abi.op import Op
    from xenpy.hypercalls.call import Call

Handler = Callable[..., "int | None"]

_MODULES: Final = (
    "callback", "console_io", "event_channel", "grant_table", "hvm", "memory", "memory_exchange", "multicall", "physdev", "sched", "vcpu",
    "version", "vm_assist",
)  # fmt: skip
_PV_MODULES: Final = ("descriptors", "legacy", "mmu_update", "mmuext", "privileged", "traps")
"""What no PVH kernel asks for, as a rule: imported when one does."""

HYPERCALLS: Final[dict[int, Callable[[Call], int | None]]] = {}
"""Number -> what carries the hypercall out; filled by the modules of this package when they are imported."""
NAMES: Final[dict[int, str]] = {}


def _register(number: int, name: str, function: Callable[[Call], int | None]) -> None:
    if number in HYPERCALLS:
        raise ValueError(f"hypercall {number} is declared twice: {NAMES[number]} and {name}")
    HYPERCALLS[number] = function
    NAMES[number] = name


def hypercall(number: int, name: str) -> Callable[[Handler], Handler]:
    """Declare the function that carries out a hypercall which has no commands."""

    def declare(function: Handler) -> Handler:
        _register(number, name, function)
        return function

    return declare


class Hypercall:
    """A hypercall with commands: argument 0 selects one, another points to its structure."""

    def __init__(self, number: int, name: str, *, struct_arg: int = 1) -> None:
        self.number = number
        self.name = name
        self.struct_arg = struct_arg
        """Which argument points to the structure."""
        self.ops: dict[int, Op] = {}
        self._handlers: dict[int, tuple[Handler, str, bool]] = {}
        _register(number, name, self)

    def handles(self, op: Op) -> Callable[[Handler], Handler]:
        """Declare the handler of a command: `handler(call, struct)`, or `handler(call)` when the row names no structure.

        It returns the hypercall's value, None meaning 0, and refuses with XenError.
        """
        if op.number in self.ops:
            raise ValueError(f"{self.name} command {op.number} is handled twice")

        def declare(function: Handler) -> Handler:
            self.ops[op.number] = op
            self._handlers[op.number] = (function, op.struct, op.out)
            return function

        return declare

    def command(self, call: Call) -> int:
        """Return the number of the command that a call selects: an int in C, of which the lower half counts."""
        return call.args[0] & 0xFFFFFFFF

    def __call__(self, call: Call) -> int | None:
        """Carry out the command that the call's first argument selects."""
        command = self.command(call)
        entry = self._handlers.get(command)
        if entry is None:
            call.domain.log(f"{self.name}.{command}", f"{self.name}: no command {command}, answered -ENOSYS")
            return -Errno.ENOSYS
        handler, tag, out = entry
        if not tag:
            return handler(call)
        gva = call.args[self.struct_arg]
        argument = call.struct(tag, gva)
        result = handler(call, argument)
        if out and not (result is not None and result < 0):
            call.store(tag, gva, argument)
        return result


class ArrayHypercall(Hypercall):
    """A hypercall whose commands take an array of structures: (command, array, count), as grant_table_op does.

    Each element is copied in, handled and copied back; a status field in it tells the guest how it went. The first refusal ends the loop.
    """

    def __call__(self, call: Call) -> int | None:
        """Carry out the command on each element of the array."""
        entry = self._handlers.get(self.command(call))
        if entry is None or not entry[1]:
            return super().__call__(call)
        handler, tag, out = entry
        gva, count = call.args[1], call.args[2] & 0xFFFFFFFF
        if count > 0x7FFFFFFF:
            return -Errno.EINVAL
        stride = call.struct_size(tag)
        for index in range(count):
            if index % 64 == 63:
                call.checkpoint()
            argument = call.struct(tag, gva)
            result = handler(call, argument)
            if out:
                call.store(tag, gva, argument)
            if result:
                return result
            gva += stride
        return 0


def load(*, pv: bool = True) -> None:
    """Import every hypercall module, so that `HYPERCALLS` is complete, or, without `pv`, as complete as a PVH guest's start wants it."""
    for name in (*_MODULES, *(_PV_MODULES if pv else ())):
        import_module(f"xenpy.hypercalls.{name}")


def carry_out(call: Call) -> int:
    """Carry out a hypercall and return its value. Raises XenError where `dispatch` returns a negative errno for a handler's refusal.

    Only XenError is expected: anything else is a bug of ours, which the domain reports and survives.
    """
    function = HYPERCALLS.get(call.nr)
    if function is None:
        load()
        function = HYPERCALLS.get(call.nr)
    if function is None:
        call.domain.log(f"hypercall.{call.nr}", f"hypercall {call.nr} is not implemented, answered -ENOSYS")
        return -Errno.ENOSYS
    return function(call) or 0


def dispatch(call: Call) -> int:
    """Carry out a hypercall and return what its return register will hold, negative errnos included."""
    try:
        return carry_out(call)
    except XenError as error:
        return -error.errno


def describe(call: Call) -> tuple[str, Any]:
    """Return the name of a hypercall, with its command, and the Op row of that command or None; for traces."""
    function = HYPERCALLS.get(call.nr)
    name = NAMES.get(call.nr, f"hypercall_{call.nr}")
    if isinstance(function, Hypercall):
        command = function.command(call)
        op = function.ops.get(command)
        return f"{name}.{op.name if op else command}", op
    return name, None
