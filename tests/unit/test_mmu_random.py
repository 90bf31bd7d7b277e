"""Page typing under arbitrary calls: whatever a guest asks for, every count is what the page tables say."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmu_rig import BASE, L1, L2, L3, L4, POOL, PRESENT, READ_ONLY, RW, USER, Rig

from xenpy.errors import XenError
from xenpy.memory import PAGE_SHIFT, PAGE_SIZE
from xenpy.pv.mmu.layout import COUNT_MASK, FrameType, is_table, refs_of, type_of

if TYPE_CHECKING:
    from collections.abc import Callable

PAGES = 24
ARGUMENTS_GPA = 0x10_0000
SLOTS = (0, 1, 2, 255, 256, 271, 300, 511)
FLAGS = (
    PRESENT | RW | USER,
    PRESENT | USER,
    PRESENT | RW,
    PRESENT,
    0,
    PRESENT | 1 << 63,
    PRESENT | 1 << 7,
    PRESENT | 1 << 8,
)
SELF = 0x7FF0
OPS = 100_000


class Guest:
    """Makes calls at random, with frames and slots so few that they meet often, and writes to what it may write to."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.rig = Rig(PAGES)
        self.rig.memory.add_ram(ARGUMENTS_GPA, 2 * PAGE_SIZE)
        self.rig.start()
        for vcpu in self.rig.vcpus:
            vcpu.flat = ARGUMENTS_GPA
        self.results: Counter[tuple[str, int]] = Counter()
        self.actions: list[Callable[[], int]] = [
            self.write, self.update, self.update, self.update, self.store, self.extended, self.extended, self.va, self.gdt,
            self.descriptor, self.memory_op, self.grow_a_tree, self.base,
        ]  # fmt: skip

    def frame(self) -> int:
        rare = self.random.random()
        if rare < 0.02:
            return self.random.choice((POOL, READ_ONLY, 0, BASE - 1, BASE + PAGES, (1 << 40) - 1))
        return BASE + self.random.randrange(PAGES)

    def value(self) -> int:
        if self.random.random() < 0.02:
            return self.random.getrandbits(64)
        return self.frame() << PAGE_SHIFT | self.random.choice(FLAGS)

    def gpa(self) -> int:
        return (self.frame() << PAGE_SHIFT) + self.random.choice(SLOTS) * 8

    def arguments(self, *words: int, offset: int = 0) -> int:
        data = b"".join((word & (1 << 64) - 1).to_bytes(8, "little") for word in words)
        self.rig.memory.write(ARGUMENTS_GPA + offset, data)
        return offset

    def call(self, number: int, *args: int) -> int:
        return self.rig.hypercall(number, *args, vcpu=self.random.randrange(2))

    def close(self) -> None:
        self.rig.close()

    # -- what it does -------------------------------------------------------------------------------------------------

    def write(self) -> int:
        """Write to memory that the guest may have mapped writable."""
        mfn = BASE + self.random.randrange(PAGES)
        if type_of(self.rig.mmu.frames.word(mfn)) in (FrameType.NONE, FrameType.WRITABLE):
            self.rig.put(mfn, self.random.choice(SLOTS), self.value())
        return 0

    def grow_a_tree(self) -> int:
        """Have four frames be a tree of tables, if they are none yet, and pin it."""
        frames = self.random.sample(range(BASE, BASE + PAGES), 4)
        if any(self.rig.mmu.frames.word(mfn) & COUNT_MASK for mfn in frames):
            return 1
        for mfn in frames:
            self.rig.memory.write(mfn << PAGE_SHIFT, bytes(PAGE_SIZE))
        for table, child in pairwise(frames):
            self.rig.put(table, self.random.choice(SLOTS), child << PAGE_SHIFT | PRESENT | RW | USER)
        return self.call(26, self.arguments(3, frames[0], 0), 1, 0, SELF)

    def update(self) -> int:
        pairs = [
            (self.gpa() | self.random.choice((0, 0, 0, 2, 1, 3)), self.value())
            for _ in range(self.random.choice((1, 3)))
        ]
        gva = self.arguments(*(word for pair in pairs for word in pair))
        return self.call(1, gva, len(pairs), 0x800, SELF)

    def store(self) -> int:
        gpa = self.gpa()
        there = BASE <= gpa >> PAGE_SHIFT < BASE + PAGES
        old = self.rig.entry(gpa >> PAGE_SHIFT, (gpa & 0xFFF) // 8) ^ (self.random.random() < 0.1) if there else 0
        try:
            return self.rig.mmu.emulate_write(gpa, old, self.value(), compare=self.random.random() < 0.5)
        except XenError as error:
            return -error.errno

    def extended(self) -> int:
        command = self.random.choice((0, 1, 2, 3, 3, 4, 4, 4, 16, 17, self.random.randrange(22)))
        return self.call(26, self.arguments(command, self.frame(), self.frame()), 1, 0x800, SELF)

    def base(self) -> int:
        tables = [mfn for mfn in range(BASE, BASE + PAGES) if type_of(self.rig.mmu.frames.word(mfn)) == FrameType.L4]
        mfn = self.random.choice([*tables, 0, self.frame()])
        return self.call(26, self.arguments(self.random.choice((5, 15)), mfn, 0), 1, 0, SELF)

    def va(self) -> int:
        return self.call(14, self.random.choice(SLOTS) << PAGE_SHIFT, self.value(), 0)

    def gdt(self) -> int:
        frames = [self.frame() for _ in range(self.random.randrange(3))]
        for mfn in frames:
            if BASE <= mfn < BASE + PAGES and self.rig.kind(mfn) is FrameType.NONE and self.random.random() < 0.5:
                self.rig.memory.write(mfn << PAGE_SHIFT, bytes(PAGE_SIZE))
        return self.call(2, self.arguments(*frames, offset=0x100), len(frames) * 512)

    def descriptor(self) -> int:
        return self.call(10, self.gpa(), self.random.choice((0, 0x00AF_9B00_0000_FFFF, self.random.getrandbits(64))))

    def memory_op(self) -> int:
        command = self.random.choice((0, 1, 6, 11))
        order = self.random.choice((0, 0, 0, 1))
        count = self.random.randrange(3)
        mfns = [self.frame() for _ in range(count << 1)]
        self.arguments(*mfns, offset=0x200)
        extents = (0x200, count, order, SELF)
        out = (0x400, count << order, 0, SELF) if self.random.random() < 0.5 else (0x400, count, order, SELF)
        return self.call(12, command, self.arguments(*extents, *out, 0))

    def run(self, count: int, *, audit_every: int) -> None:
        for index in range(count):
            action = self.random.choice(self.actions)
            result = action()
            self.results[action.__name__, result] += 1
            if index % audit_every == audit_every - 1:
                assert self.rig.mmu.audit() == []
                assert self.rig.mmu.frames.mismatches == 0
        assert self.rig.mmu.audit() == []


def never_both(guest: Guest) -> None:
    """Check the property that all of this serves: no page table can be written to by the guest."""
    frames = guest.rig.mmu.frames
    for mfn in range(BASE, BASE + PAGES):
        if is_table(frames.word(mfn)) and type_of(frames.word(mfn)) == FrameType.L1:
            for slot in range(512):
                entry = guest.rig.entry(mfn, slot)
                target = (entry & 0x000F_FFFF_FFFF_F000) >> PAGE_SHIFT
                if entry & PRESENT and entry & RW and BASE <= target < BASE + PAGES:
                    assert not is_table(frames.word(target))


@pytest.mark.parametrize("seed", range(4))
def test_counts_hold_after_many_calls(seed: int) -> None:
    with closing(Guest(Random(seed))) as guest:
        guest.run(OPS // 4, audit_every=500)
        never_both(guest)
    succeeded = {name for name, result in guest.results if result >= 0}
    refused = {name for name, result in guest.results if result < 0}
    assert succeeded >= {"update", "store", "extended", "base", "va", "gdt", "descriptor", "memory_op", "grow_a_tree"}
    assert refused >= {"update", "store", "extended", "base", "va", "gdt", "descriptor", "grow_a_tree"}


@settings(max_examples=60)
@given(random=st.randoms(use_true_random=False), count=st.integers(1, 60))
def test_counts_hold_after_any_calls(random: Random, count: int) -> None:
    with closing(Guest(random)) as guest:
        guest.run(count, audit_every=1)
        never_both(guest)


def test_everything_can_be_given_back() -> None:
    """Empty whatever tables there are, from the top: nothing is left but the read-only mappings of frames that are free."""
    with closing(Guest(Random(99))) as guest:
        guest.run(2000, audit_every=200)
        rig, mmu = guest.rig, guest.rig.mmu
        for vcpu in rig.vcpus:
            for mfn, kernel in ((vcpu.kernel_l4, True), (vcpu.user_l4, False)):
                if mfn:
                    mmu.drop_base(mfn, kernel=kernel)
            mmu.tables_of(vcpu.vcpu_id).clear()
        for mfn in range(BASE, BASE + PAGES):
            guest.call(26, guest.arguments(4, mfn, 0), 1, 0, SELF)
        for level in (FrameType.L4, FrameType.L3, FrameType.L2, FrameType.L1):
            for mfn in range(BASE, BASE + PAGES):
                for slot in SLOTS:
                    word = mmu.frames.word(mfn)
                    if type_of(word) == level and not (level == FrameType.L4 and 256 <= slot < 272):
                        mmu.update((mfn << PAGE_SHIFT) + slot * 8, 0, rig.checkpoint)
        assert [mfn for mfn in range(BASE, BASE + PAGES) if refs_of(mmu.frames.word(mfn))] == []
        assert {L1, L2, L3, L4} <= set(range(BASE, BASE + PAGES))
