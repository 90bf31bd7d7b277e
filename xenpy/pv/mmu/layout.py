"""The word that describes one frame of a PV guest's memory: its type, who uses it, and what state it is in.

The words lie in memory that machine code inside the guest shares with us and changes without our lock, so each change is one atomic
operation on the whole word. Rules for both sides:

- A type means nothing while the type count is 0.
- Who writes entries of a validated table holds LOCKED meanwhile (lock bts, then a look at the rest of the word); it is released by lock
  btr, since other bits may change under the holder. Words of a frame that is no table are written under LOCKED too, or with a reference
  as WRITABLE.
- A validated table loses VALIDATED, or a frame turns into a table, only while LOCKED is clear, in one compare-and-exchange.
- Machine code leaves frames alone that are not OWNED, tables that are not VALIDATED, and all that is LOCKED: we do those.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

COUNT_MASK: Final = (1 << 28) - 1
"""How often the frame is used as what its type says."""
TYPE_SHIFT: Final = 28
TYPE_MASK: Final = 7 << TYPE_SHIFT
VALIDATED: Final = 1 << 31
"""All entries of the table, or all descriptors of the segment page, have been checked and hold their references."""
REFS_SHIFT: Final = 32
REFS_FIELD: Final = (1 << 23) - 1
"""Every use of the frame, those as its type included; shifted by `REFS_SHIFT`."""
MAX_REFS: Final = 1 << 22
"""No reference is taken beyond so many; well below the field, for those that are taken at once."""
REFS_FULL: Final = MAX_REFS << REFS_SHIFT
"""The field's top bit, which is set once there are that many."""
PINNED: Final = 1 << 56
WAS_TABLE: Final = 1 << 57
"""The frame has been a page table at some time: KVM may hold a shadow of it, which only writes from inside the guest reach."""
KERNEL_ROLE: Final = 1 << 58
"""The hypervisor's slots of this L4 show what the guest's kernel may see."""
OWNED: Final = 1 << 59
"""The guest has the frame; without this bit it is free, or waits for its last reference to go."""
LOCKED_BIT: Final = 63
LOCKED: Final = 1 << LOCKED_BIT

ONE_REF: Final = 1 << REFS_SHIFT
ONE_TYPED: Final = ONE_REF + 1


class FrameType(IntEnum):
    """What a frame is used as; those up to L4 are page tables, the number being the level."""

    NONE = 0
    L1 = 1
    L2 = 2
    L3 = 3
    L4 = 4
    SEGDESC = 5
    WRITABLE = 7


def type_of(word: int) -> int:
    """Return the FrameType of a word."""
    return (word & TYPE_MASK) >> TYPE_SHIFT if word & COUNT_MASK else FrameType.NONE


def type_name(word: int) -> str:
    """Return what a word says that its frame is, whatever it says: on some hosts a kernel can write to it."""
    kind = type_of(word)
    return FrameType(kind).name if kind in FrameType.__members__.values() else f"type {kind}"


def refs_of(word: int) -> int:
    """Return how many references a word counts."""
    return word >> REFS_SHIFT & REFS_FIELD


_L1_BITS: Final = OWNED | VALIDATED | TYPE_MASK
_L1: Final = OWNED | VALIDATED | FrameType.L1 << TYPE_SHIFT


def is_l1(word: int) -> bool:
    """Tell whether the frame is a page table of the guest's with all of its entries checked, of level 1."""
    return word & _L1_BITS == _L1 and word & COUNT_MASK > 0


def is_table(word: int) -> bool:
    """Tell whether the frame is a page table with all of its entries checked."""
    return bool(word & VALIDATED) and FrameType.L1 <= type_of(word) <= FrameType.L4
