"""What of a PV domain's MMU is not in its memory, as plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MmuState:
    """The rest, types and references, are in the frame table, which is memory of the guest's."""

    held: dict[int, int]
    """How often each frame is held by a vCPU."""
    kernel_bases: dict[int, int]
    user_bases: dict[int, int]
    """How often each L4 is the kernel's, or user mode's, on some vCPU."""
    descriptor_tables: dict[int, tuple[tuple[int, ...], tuple[int, ...]]]
    """The frames of GDT and LDT by vCPU."""
    linear: dict[int, int]
    fresh: tuple[int, int]
    returned: tuple[int, ...]
    mismatches: int
