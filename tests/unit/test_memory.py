"""Guest memory: what is populated, placed, given back, and who hears of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from xenpy.errors import Errno, XenError
from xenpy.framepool import FramePool
from xenpy.memory import ADDRESS_BITS, PAGE_SHIFT, PAGE_SIZE, Frame, GuestMemory, Region

if TYPE_CHECKING:
    from collections.abc import Iterator

LOW_PAGES, HIGH_GFN, HIGH_PAGES = 16, 0x100, 8
LOW_END = LOW_PAGES << PAGE_SHIFT
HIGH = HIGH_GFN << PAGE_SHIFT
HIGH_END = HIGH + (HIGH_PAGES << PAGE_SHIFT)
TOP = 1 << ADDRESS_BITS


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    made = GuestMemory()
    made.add_ram(0, LOW_END)
    made.add_ram(HIGH, HIGH_END - HIGH)
    yield made
    made.close()


@pytest.fixture
def pool() -> Iterator[FramePool]:
    made = FramePool(4)
    yield made
    made.close()


def refused(errno: Errno, function, *args) -> None:
    with pytest.raises(XenError) as caught:
        function(*args)
    assert caught.value.errno is errno


# -- access -----------------------------------------------------------------------------------------------------------


def test_ram_is_zero_and_holds_what_is_written(memory: GuestMemory) -> None:
    assert memory.read(0x1FF0, 32) == bytes(32)
    memory.write(0x1FF0, b"across the page border, all of it")
    assert memory.read(0x1FF0, 33) == b"across the page border, all of it"
    memory.fill([(0, b"a"), (HIGH, b"b")])
    assert memory.read(0, 1) + memory.read(HIGH, 1) == b"ab"
    assert memory.read_u64(HIGH) == ord("b")


def test_what_is_prefaulted_has_the_hosts_memory(memory: GuestMemory) -> None:
    memory.write(HIGH, b"kept")
    before = os.fstat(memory.ram_fd).st_blocks
    if not memory.prefault(HIGH, HIGH_END - HIGH):
        pytest.skip("this host's kernel has no MADV_POPULATE_WRITE")
    assert (os.fstat(memory.ram_fd).st_blocks - before) * 512 == HIGH_END - HIGH - PAGE_SIZE
    assert memory.read(HIGH, 8) == b"kept\0\0\0\0"


def test_what_is_no_ram_is_not_prefaulted(memory: GuestMemory) -> None:
    assert not memory.prefault(TOP - PAGE_SIZE, PAGE_SIZE)


@pytest.mark.parametrize(
    ("gpa", "size"),
    [
        (LOW_END, 1), (LOW_END - 1, 2), (HIGH - 1, 1), (HIGH - 1, 2), (HIGH_END, 1), (HIGH_END - 8, 9), (TOP - 1, 1), (TOP, 1),
        (TOP - 1, 2), (1 << 63, 1), ((1 << 64) - 1, 1), (-1, 1), (-1, 2), (-PAGE_SIZE, PAGE_SIZE), (0, HIGH_END), (0, -1),
        (0x1000, -0x1000),
    ],
)  # fmt: skip
def test_what_is_not_populated_faults(memory: GuestMemory, gpa: int, size: int) -> None:
    refused(Errno.EFAULT, memory.check, gpa, size)
    refused(Errno.EFAULT, memory.read, gpa, size)
    refused(Errno.EFAULT, memory.view, gpa, size)
    if size >= 0:
        refused(Errno.EFAULT, memory.write, gpa, bytes(min(size, 1 << 20)))


@pytest.mark.parametrize("gpa", [0, LOW_END, HIGH_END - 1, TOP, -1, 1 << 64])
def test_nothing_lies_anywhere(memory: GuestMemory, gpa: int) -> None:
    memory.check(gpa, 0)
    assert memory.read(gpa, 0) == b""
    memory.write(gpa, b"")


def test_regions_that_touch_are_one_to_a_reader(memory: GuestMemory) -> None:
    memory.add_ram(LOW_END, PAGE_SIZE)
    memory.write(LOW_END - 2, b"abcd")
    assert memory.read(LOW_END - 2, 4) == b"abcd"
    assert memory.max_gfn == (HIGH_END - 1) >> PAGE_SHIFT


@settings(max_examples=200)
@given(gpa=st.integers(-(1 << 65), 1 << 65), size=st.integers(-(1 << 65), 1 << 65))
def test_check_is_exact(gpa: int, size: int) -> None:
    memory = _shared_memory()
    inside = any(start <= gpa <= gpa + size <= end for start, end in ((0, LOW_END), (HIGH, HIGH_END)))
    if inside or size == 0:
        memory.check(gpa, size)
    else:
        refused(Errno.EFAULT, memory.check, gpa, size)


_made: list[GuestMemory] = []


def _shared_memory() -> GuestMemory:
    if not _made:
        _made.append(GuestMemory())
        _made[0].add_ram(0, LOW_END)
        _made[0].add_ram(HIGH, HIGH_END - HIGH)
    return _made[0]


def test_a_view_is_live(memory: GuestMemory) -> None:
    view = memory.view(0x3000, 4)
    memory.write(0x3000, b"seen")
    assert bytes(view) == b"seen"
    view[0] = ord("S")
    assert memory.read(0x3000, 4) == b"Seen"
    view.release()


# -- placing ----------------------------------------------------------------------------------------------------------


def test_a_frame_may_be_placed_over_ram_and_taken_away(memory: GuestMemory, pool: FramePool) -> None:
    memory.write(0x4000, b"old")
    frame = pool.allocate()
    pool.view(frame)[:3] = b"new"
    memory.place(4, frame)
    assert memory.read(0x4000, 3) == b"new"
    assert not memory.is_ram(4)
    assert memory.frame_of(4) == frame
    assert memory.ram_pages == LOW_PAGES + HIGH_PAGES - 1
    assert memory.unplace(4) == frame
    assert memory.read(0x4000, 3) == bytes(3), "the RAM page was given up when the frame came"
    assert not memory.is_ram(4)
    assert memory.frame_of(4) is None
    assert memory.populate(4)
    assert memory.ram_pages == LOW_PAGES + HIGH_PAGES


def test_a_frame_may_be_placed_where_nothing_is(memory: GuestMemory, pool: FramePool) -> None:
    heard: list[Region] = []
    memory.on_region = heard.append
    frame, gfn = pool.allocate(), 0x5000
    memory.place(gfn, frame, readonly=True)
    assert heard == [Region(gfn << PAGE_SHIFT, PAGE_SIZE, memory.hva(gfn << PAGE_SHIFT), readonly=True)]
    assert memory.read(gfn << PAGE_SHIFT, 8) == bytes(8)
    assert memory.max_gfn == gfn
    assert memory.unplace(gfn) == frame
    assert heard[1:] == [Region(gfn << PAGE_SHIFT, 0, memory.hva(gfn << PAGE_SHIFT))]
    refused(Errno.EFAULT, memory.read, gfn << PAGE_SHIFT, 1)
    assert memory.unplace(gfn) is None


def test_placing_within_ram_leaves_the_slots_alone(memory: GuestMemory, pool: FramePool) -> None:
    heard: list[Region] = []
    memory.on_region = heard.append
    memory.place(4, pool.allocate())
    memory.place(4, pool.allocate())
    memory.unplace(4)
    assert heard == []


def test_a_view_outlives_the_frame_it_showed(memory: GuestMemory, pool: FramePool) -> None:
    memory.place(0x5000, pool.allocate())
    view = memory.view(0x5000 << PAGE_SHIFT, 8)
    memory.unplace(0x5000)
    view[0] = 1  # must not fault
    view.release()


@pytest.mark.parametrize("gfn", [-1, TOP >> PAGE_SHIFT, (1 << 52), (1 << 64) - 1])
def test_frames_have_their_limits(memory: GuestMemory, pool: FramePool, gfn: int) -> None:
    refused(Errno.EINVAL, memory.place, gfn, pool.allocate())
    assert memory.unplace(gfn) is None
    assert not memory.release(gfn)
    assert not memory.populate(gfn)
    assert not memory.is_ram(gfn)
    assert memory.frame_of(gfn) is None


def test_the_last_frame_of_the_space(memory: GuestMemory, pool: FramePool) -> None:
    gfn = (TOP >> PAGE_SHIFT) - 1
    memory.place(gfn, pool.allocate())
    memory.write(TOP - 1, b"x")
    refused(Errno.EFAULT, memory.write, TOP - 1, b"xy")
    memory.unplace(gfn)


def test_one_frame_in_several_places_is_one_page(memory: GuestMemory, pool: FramePool) -> None:
    frame = pool.allocate()
    for gfn in (3, 0x5000):
        memory.place(gfn, frame)
    assert sorted(memory.placed_gfns(frame)) == [3, 0x5000]
    memory.write(3 << PAGE_SHIFT, b"x")
    assert memory.read(0x5000 << PAGE_SHIFT, 1) == b"x"


# -- ballooning -------------------------------------------------------------------------------------------------------


def test_a_page_given_back_comes_back_zero(memory: GuestMemory) -> None:
    memory.write(HIGH, b"secret")
    assert memory.release(HIGH_GFN)
    assert not memory.release(HIGH_GFN)
    assert memory.read(HIGH, 6) == bytes(6)
    memory.write(HIGH, b"scribble")
    assert memory.lacks(HIGH_GFN)
    assert memory.populate(HIGH_GFN)
    assert not memory.lacks(HIGH_GFN)
    assert not memory.populate(HIGH_GFN)
    assert memory.read(HIGH, 8) == bytes(8)
    assert memory.frame_of(HIGH_GFN) == Frame(memory.ram_fd, LOW_END)


def test_giving_back_frees_memory_of_the_host(memory: GuestMemory) -> None:
    memory.write(0, b"x" * LOW_END)
    before = os.fstat(memory.ram_fd).st_blocks
    for gfn in range(LOW_PAGES):
        memory.release(gfn)
    assert os.fstat(memory.ram_fd).st_blocks == before - LOW_END // 512


class Places(RuleBasedStateMachine):
    """Pages placed, taken, released and populated at random against a model of what each gfn holds."""

    GFNS = st.sampled_from(
        [0, 1, LOW_PAGES - 1, LOW_PAGES, HIGH_GFN, HIGH_GFN + HIGH_PAGES - 1, HIGH_GFN + HIGH_PAGES, 0x9000]
    )

    def __init__(self) -> None:
        super().__init__()
        self.memory = GuestMemory()
        self.slots: dict[int, Region] = {}
        self.memory.on_region = self.hear
        self.memory.add_ram(0, LOW_END)
        self.memory.add_ram(HIGH, HIGH_END - HIGH)
        self.pool = FramePool(3)
        self.frames = [self.pool.allocate() for _ in range(3)]
        for index, frame in enumerate(self.frames):
            self.pool.view(frame)[0] = index + 1
        self.absent: set[int] = set()
        self.placed: dict[int, int] = {}

    def hear(self, region: Region) -> None:
        if region.size:
            assert not any(
                region.gpa < r.gpa + r.size and r.gpa < region.gpa + region.size for r in self.slots.values()
            )
            self.slots[region.gpa] = region
        else:
            del self.slots[region.gpa]

    @staticmethod
    def was_ram(gfn: int) -> bool:
        return gfn < LOW_PAGES or HIGH_GFN <= gfn < HIGH_GFN + HIGH_PAGES

    def is_ram(self, gfn: int) -> bool:
        return self.was_ram(gfn) and gfn not in self.absent and gfn not in self.placed

    @rule(gfn=GFNS, index=st.integers(0, 2))
    def place(self, gfn: int, index: int) -> None:
        self.memory.place(gfn, self.frames[index])
        if self.was_ram(gfn):
            self.absent.add(gfn)
        self.placed[gfn] = index

    @rule(gfn=GFNS)
    def unplace(self, gfn: int) -> None:
        index = self.placed.pop(gfn, None)
        assert self.memory.unplace(gfn) == (None if index is None else self.frames[index])

    @rule(gfn=GFNS)
    def release(self, gfn: int) -> None:
        assert self.memory.release(gfn) == self.is_ram(gfn)
        if self.is_ram(gfn):
            self.absent.add(gfn)

    @rule(gfn=GFNS)
    def populate(self, gfn: int) -> None:
        expected = self.was_ram(gfn) and gfn in self.absent and gfn not in self.placed
        assert self.memory.populate(gfn) == expected
        if expected:
            self.absent.discard(gfn)

    @invariant()
    def agrees(self) -> None:
        assert self.memory.ram_pages == LOW_PAGES + HIGH_PAGES - len(self.absent)
        assert set(self.slots) == {region.gpa for region in self.memory.regions}
        for gfn in (0, 1, LOW_PAGES - 1, LOW_PAGES, HIGH_GFN, 0x9000):
            assert self.memory.is_ram(gfn) == self.is_ram(gfn)
            if gfn in self.placed:
                assert self.memory.read(gfn << PAGE_SHIFT, 1)[0] == self.placed[gfn] + 1
            elif self.was_ram(gfn):
                assert self.memory.read(gfn << PAGE_SHIFT, 1) == b"\0"
            else:
                refused(Errno.EFAULT, self.memory.read, gfn << PAGE_SHIFT, 1)

    def teardown(self) -> None:
        self.memory.close()
        self.pool.close()


TestPlaces = Places.TestCase
TestPlaces.settings = settings(max_examples=25, stateful_step_count=30)


# -- frames -----------------------------------------------------------------------------------------------------------


def test_frames_are_zeroed_when_they_are_used_again(pool: FramePool) -> None:
    frames = [pool.allocate() for _ in range(4)]
    assert len({frame.offset for frame in frames}) == 4
    refused(Errno.ENOMEM, pool.allocate)
    pool.view(frames[2])[:] = b"x" * PAGE_SIZE
    pool.free(frames[2])
    assert bytes(pool.view(pool.allocate())) == bytes(PAGE_SIZE)


def test_closing_twice_is_closing_once() -> None:
    memory, pool = GuestMemory(), FramePool(1)
    for _ in range(2):
        memory.close()
        pool.close()
