"""The row that declares one command of a hypercall: all that dispatch and the trace need to know of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Op:
    """One command of a hypercall.

    `name` is Xen's; `struct` the C tag of its argument, or "" when it takes none or is decoded by the handler; `out` tells that the
    structure is copied back when the command succeeds.
    """

    number: int
    name: str
    struct: str = ""
    out: bool = False
