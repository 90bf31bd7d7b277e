"""Checks the frame table against the page tables: what each frame should count, by walking all that holds references."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from xenpy.memory import PAGE_SHIFT
from xenpy.pv.mmu.entries import ENTRIES, ROOT_LEVEL, XEN_SLOTS, frame_of
from xenpy.pv.mmu.layout import (
    COUNT_MASK,
    LOCKED,
    OWNED,
    PINNED,
    VALIDATED,
    WAS_TABLE,
    FrameType,
    is_table,
    refs_of,
    type_of,
)
from xenpy.pv.paging import PTE_PRESENT, PTE_RW

if TYPE_CHECKING:
    from xenpy.pv.mmu.mmu import Mmu


class Difference(NamedTuple):
    """A frame whose word does not say what it should; `expected` and `found` are the reference and type counts, or a flag's name."""

    mfn: int
    expected: object
    found: object


def audit(mmu: Mmu) -> list[Difference]:
    """Return what is wrong with the frame table. No call may be under way; its time grows with the number of page tables.

    Grant mappings hold no references, but entries that name a frame of the guest's own do, whoever wrote them.
    """
    frames = mmu.frames
    refs: Counter[int] = Counter()
    typed: Counter[tuple[int, int]] = Counter()
    words = {mfn: word for mfn, word in enumerate(frames.words.tolist(), frames.base) if word & ~OWNED & ~WAS_TABLE}
    for mfn, word in words.items():
        kind = type_of(word)
        if word & PINNED:
            refs[mfn] += 1
            typed[mfn, kind] += 1
        if is_table(word):
            _count_entries(mmu, mfn, kind, refs, typed)
    for mfn, count in mmu.held.items():
        refs[mfn] += count
        typed[mfn, type_of(frames.word(mfn))] += count
    found: list[Difference] = []
    for mfn in words.keys() | refs.keys():
        found += _compare(frames.word(mfn), mfn, refs[mfn], typed)
    return sorted(found, key=lambda difference: difference.mfn)


def _count_entries(mmu: Mmu, mfn: int, level: int, refs: Counter[int], typed: Counter[tuple[int, int]]) -> None:
    frames = mmu.frames
    first = mfn << PAGE_SHIFT - 3
    for slot, entry in enumerate(mmu.memory.u64[first : first + ENTRIES].tolist()):
        child = frame_of(entry)
        if (
            not entry & PTE_PRESENT
            or not frames.base <= child < frames.end
            or (level == ROOT_LEVEL and slot in XEN_SLOTS)
        ):
            continue
        if level == FrameType.L1:
            refs[child] += 1
            if entry & PTE_RW:
                typed[child, FrameType.WRITABLE] += 1
        elif child != mfn:
            refs[child] += 1
            kind = type_of(frames.word(child))
            typed[child, level if kind == level else level - 1] += 1


def _compare(word: int, mfn: int, refs: int, typed: Counter[tuple[int, int]]) -> list[Difference]:
    kind = type_of(word)
    found: list[Difference] = []
    if refs_of(word) != refs:
        found.append(Difference(mfn, ("references", refs), refs_of(word)))
    for other in FrameType:
        count = word & COUNT_MASK if other == kind else 0
        if typed[mfn, other] != count:
            found.append(Difference(mfn, (other.name, typed[mfn, other]), count))
    if word & LOCKED:
        found.append(Difference(mfn, "unlocked", "LOCKED"))
    validated = kind not in (FrameType.NONE, FrameType.WRITABLE)
    if bool(word & VALIDATED) != validated:
        found.append(Difference(mfn, ("VALIDATED", validated), not validated))
    return found
