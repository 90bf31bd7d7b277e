"""Whole tables, by machine code, against one entry after the other in Python: the same words, entries and errors."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st
from mmu_rig import BASE, POOL, PRESENT, READ_ONLY, RW, USER, Rig

from xenpy import libc
from xenpy.abi._libc import ffi
from xenpy.asm import Assembler, mem
from xenpy.asm.registers import rdi, rdx, rsi
from xenpy.errors import XenError
from xenpy.memory import PAGE_SHIFT
from xenpy.pv.mmu.entries import ENTRIES, GUEST_KERNEL, adjust_l1
from xenpy.pv.mmu.layout import (
    COUNT_MASK,
    KERNEL_ROLE,
    LOCKED,
    MAX_REFS,
    ONE_REF,
    OWNED,
    PINNED,
    REFS_SHIFT,
    TYPE_SHIFT,
    VALIDATED,
    WAS_TABLE,
    FrameType,
    refs_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    import pytest

    from xenpy.pv.mmu.frames import FrameTable

PAGES = 12
TABLE = BASE + PAGES - 1
OTHERS = range(BASE, TABLE)
NX, GLOBAL, PSE, PCD = 1 << 63, 1 << 8, 1 << 7, 1 << 4
FLAGS = (USER, USER | RW, RW, 0, USER | GUEST_KERNEL | RW, USER | GLOBAL, USER | NX, USER | 0x60)
TYPES = [kind for kind in FrameType if kind]


def get_each(frames: FrameTable, *, fresh: bool) -> None:
    """Do what `get_l1_entries` does, one entry after the other."""
    first = TABLE << PAGE_SHIFT - 3
    entries = frames.memory.u64[first : first + ENTRIES].tolist()
    for slot, entry in enumerate(entries):
        if entry & PRESENT:
            try:
                frames.get_unusual(entry)
            except XenError:
                for taken in entries[:slot]:
                    if taken & PRESENT:
                        frames.put_unusual(taken)
                raise
    frames.write_entries(
        TABLE,
        [(slot, adjust_l1(entry)) for slot, entry in enumerate(entries) if adjust_l1(entry) != entry],
        fresh=fresh,
    )


def put_each(frames: FrameTable) -> None:
    """Do what `put_l1_entries` does."""
    first = TABLE << PAGE_SHIFT - 3
    for entry in frames.memory.u64[first : first + ENTRIES].tolist():
        if entry & PRESENT:
            frames.put_unusual(entry)


def outcome(run: Callable[[], None]) -> tuple[int, str]:
    """Return errno and text of the error that something raises, 0 for none."""
    try:
        run()
    except XenError as error:
        return error.errno, str(error)
    return 0, ""


def state(rig: Rig, freed: list[int]) -> tuple[object, ...]:
    first = TABLE << PAGE_SHIFT - 3
    table = rig.memory.u64[first : first + ENTRIES].tolist()
    return rig.words.tolist(), table, rig.stored, rig.mmu.frames.mismatches, freed


def random_word(random: Random) -> int:
    """Return a word that could be, of a frame in any condition."""
    typed = random.choice((0, 0, 1, 2, 600, COUNT_MASK >> 6))
    word = typed | random.choice(TYPES) << TYPE_SHIFT if typed or random.random() < 0.2 else 0
    refs = random.choice((typed, typed, typed + 1, typed + 600, MAX_REFS - 1, MAX_REFS, MAX_REFS - 3))
    word |= max(refs, typed) << REFS_SHIFT
    for flag, chance in ((OWNED, 0.9), (VALIDATED, 0.4), (PINNED, 0.2), (WAS_TABLE, 0.3), (KERNEL_ROLE, 0.1)):
        word |= flag if random.random() < chance else 0
    return word | (LOCKED if random.random() < 0.1 else 0)


def random_entry(random: Random, rare: float) -> int:
    if random.random() < rare:
        mfn = random.choice((POOL, READ_ONLY, 0, BASE - 1, BASE + PAGES, (1 << 40) - 1, random.getrandbits(40)))
        return mfn << PAGE_SHIFT | PRESENT | random.choice((*FLAGS, PSE, PCD)) | random.choice((0, 1 << 57))
    entry = random.choice(OTHERS) << PAGE_SHIFT | random.choice(FLAGS) | random.choice((PRESENT, PRESENT, 0))
    return entry | (PSE if random.random() < rare / 10 else 0)


class Both:
    """Two rigs in the same state: `fast` for the machine code, `slow` for one entry after the other."""

    def __init__(self, words: list[int], entries: dict[int, int]) -> None:
        self.rigs = (Rig(PAGES), Rig(PAGES))
        self.freed: tuple[list[int], list[int]] = ([], [])
        for rig, freed in zip(self.rigs, self.freed, strict=True):
            rig.mmu.frames.on_free = freed.append
            for index, word in enumerate(words):
                rig.words[index] = word
            for slot, entry in entries.items():
                rig.put(TABLE, slot, entry)

    def close(self) -> None:
        for rig in self.rigs:
            rig.close()

    def get(self, *, fresh: bool) -> None:
        """Take the references on both sides, which end alike."""
        fast, slow = (rig.mmu.frames for rig in self.rigs)
        assert outcome(partial(fast.get_l1_entries, TABLE, fresh=fresh)) == outcome(
            partial(get_each, slow, fresh=fresh)
        )

    def put(self) -> None:
        self.rigs[0].mmu.frames.put_l1_entries(TABLE)
        put_each(self.rigs[1].mmu.frames)

    def check(self) -> None:
        fast, slow = (state(*pair) for pair in zip(self.rigs, self.freed, strict=True))
        assert fast == slow


def random_case(random: Random) -> Both:
    tame = random.random() < 0.6  # otherwise nearly every table is refused
    frames = [OWNED] * PAGES if tame else [random_word(random) for _ in range(PAGES)]
    present = random.choice((0, 1, 5, 100, ENTRIES))
    rare = random.choice((0, 0, 0.01, 0.2))
    entries = {slot: random_entry(random, rare) for slot in random.sample(range(ENTRIES), present)}
    return Both(frames, entries)


@settings(max_examples=400)
@given(random=st.randoms(use_true_random=True), fresh=st.booleans())
def test_taking_references_of_any_table(random: Random, fresh: bool) -> None:
    with closing(random_case(random)) as both:
        both.get(fresh=fresh)
        both.check()
        if random.random() < 0.3:  # frames that the guest gives up meanwhile are free when their last reference goes
            for index in random.sample(range(PAGES), 5):
                for rig in both.rigs:
                    rig.words[index] &= ~OWNED
        both.put()
        both.check()


@settings(max_examples=200)
@given(random=st.randoms(use_true_random=True))
def test_giving_back_what_is_not_held(random: Random) -> None:
    with closing(random_case(random)) as both:
        both.put()
        both.check()


@settings(max_examples=200)
@given(random=st.randoms(use_true_random=True))
def test_single_entries(random: Random) -> None:
    with closing(random_case(random)) as both:
        fast, slow = (rig.mmu.frames for rig in both.rigs)
        for _ in range(40):
            entry = random_entry(random, 0.05) | PRESENT
            if random.random() < 0.5:
                fast.put_l1_entry(entry)
                slow.put_unusual(entry)
            else:
                io = random.random() < 0.1
                native, python = partial(fast.get_l1_entry, entry, io=io), partial(slow.get_unusual, entry, io=io)
                assert outcome(native) == outcome(python)
        both.check()


def test_a_full_table_of_all_that_is_usual_needs_no_python(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(PAGES)
    frames = rig.mmu.frames
    for index in range(PAGES):
        rig.words[index] = OWNED
    for slot in range(ENTRIES):
        rig.put(TABLE, slot, OTHERS[slot % 5] << PAGE_SHIFT | PRESENT | (RW if slot % 2 else 0))

    def slow(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(frames, "get_unusual", slow)
    monkeypatch.setattr(frames, "put_unusual", slow)
    frames.get_l1_entries(TABLE, fresh=True)
    assert [refs_of(rig.words[index]) for index in range(6)] == [103, 103, 102, 102, 102, 0]
    assert rig.entry(TABLE, 1) & GUEST_KERNEL
    frames.put_l1_entries(TABLE)
    assert rig.words.tolist() == [OWNED] * PAGES
    rig.close()


def test_present_entries_are_found() -> None:
    rig = Rig(PAGES)
    assert rig.mmu.frames.present(TABLE) == []
    for slot, entry in ((0, PRESENT), (1, RW), (255, NX | PRESENT), (511, PRESENT | USER)):
        rig.put(TABLE, slot, entry)
    assert rig.mmu.frames.present(TABLE) == [(0, PRESENT), (255, NX | PRESENT), (511, PRESENT | USER)]
    for slot in range(ENTRIES):
        rig.put(TABLE, slot, slot << PAGE_SHIFT | PRESENT)
    assert [slot for slot, _ in rig.mmu.frames.present(TABLE)] == list(range(ENTRIES))
    rig.close()


def test_words_change_under_the_machine_code() -> None:
    """Another processor, as code in the guest would, takes and gives references all the while: none of anybody's is lost."""
    rig = Rig(PAGES)
    frames = rig.mmu.frames
    rig.words[0] = OWNED
    for slot in range(ENTRIES):
        flags = PRESENT | USER | GUEST_KERNEL | (RW if slot % 3 else 0)
        rig.put(TABLE, slot, OTHERS[0] << PAGE_SHIFT | flags)
    a = Assembler()
    a.mov(rdx, ONE_REF)
    a.label("again")
    a.lock.add(mem(rdi), rdx)
    a.lock.sub(mem(rdi), rdx)
    a.dec(rsi)
    a.jnz("again")
    a.ret()
    code = a.assemble()
    hva = libc.map_code("test-mmu", code)
    intrude = libc.native_function(hva, "native_word_op")
    with ffi.from_buffer(rig.words) as words:
        other = Thread(target=intrude, args=(int(ffi.cast("uintptr_t", words)), 2_000_000, 0))
        other.start()
        while other.is_alive():
            frames.get_l1_entries(TABLE, fresh=True)
            frames.put_l1_entries(TABLE)
    libc.unmap_memory(hva, len(code))
    assert rig.words[0] == OWNED
    assert frames.mismatches == 0
    rig.close()
