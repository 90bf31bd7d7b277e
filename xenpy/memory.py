"""Guest memory: a sparse guest-physical space over memfds, linear in our address space.

One reservation covers the whole guest-physical space, so `hva = base + gpa` everywhere and a view of a guest page needs no lookup. RAM is a
shared memfd mapped into it; pages of the hypervisor's own (shared_info, grant frames) live in a second memfd and may be mapped over any
gfn, in RAM or outside. KVM notices through its MMU notifier, so placing a page inside RAM needs no memory-slot change.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, NewType

from xenpy import libc
from xenpy.errors import Errno, XenError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from xenpy.framepool import FramePool
    from xenpy.frozen import FrozenRam

Gpa = NewType("Gpa", int)
Gfn = NewType("Gfn", int)
Hva = NewType("Hva", int)

PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 1 << PAGE_SHIFT
PAGE_MASK: Final = PAGE_SIZE - 1
ADDRESS_BITS: Final = 40
"""Width of the guest-physical space; CPUID tells the guest the same."""

_HUGE_PAGE: Final = 2 << 20


class Frame(NamedTuple):
    """A page of a memfd that may be mapped at a gfn: the hypervisor's own, or another domain's RAM.

    One with a negative `fd` is a page of private RAM, at gpa `offset`, which nobody else can map.
    """

    fd: int
    offset: int


@dataclass(frozen=True, slots=True)
class Region:
    """A contiguous populated range of gfns, backed by one KVM memory slot. `size` is in bytes."""

    gpa: int
    size: int
    hva: int
    readonly: bool = False


def _ignore_region(_region: Region) -> None:
    """Do nothing: no KVM is listening."""


class GuestMemory:
    """The guest-physical space of one domain.

    `on_region` hears of every slot that appears (size > 0) or goes (size 0), for the KVM layer. Reads and writes outside populated
    memory raise XenError(EFAULT): they come from guest-supplied addresses. All methods expect the domain's lock.
    """

    def __init__(self) -> None:
        self._base = libc.map_memory(
            0, 1 << ADDRESS_BITS, libc.PROT_NONE, libc.MAP_PRIVATE | libc.MAP_ANONYMOUS | libc.MAP_NORESERVE
        )
        self._view = libc.buffer(self._base, 1 << ADDRESS_BITS)
        self.u64 = self._view.cast("Q")
        """The whole space as 64-bit words, unchecked: index with gpa >> 3 only after `check`."""
        self._fd = libc.memfd("xenpy-ram")
        self._private = False
        self._ram_size = 0
        self._ram_pages = 0
        self._starts: list[int] = []
        self._regions: list[Region] = []
        self._ram: list[tuple[int, int, int]] = []  # gpa, size, memfd offset
        self._absent: dict[int, bytearray] = {}  # RAM gpa -> one byte a page, 1 where the guest gave the page back
        self._placed: dict[int, Frame] = {}
        self._main_start = self._main_end = 0  # the largest run of RAM, where nearly every access goes
        self.on_region: Callable[[Region], None] = _ignore_region

    @property
    def regions(self) -> tuple[Region, ...]:
        """Return every populated range, ascending."""
        return tuple(self._regions)

    @property
    def ram_fd(self) -> int:
        """Return the memfd that holds the RAM, which is shared with whoever has it unless `is_private`."""
        return self._fd

    @property
    def main_run(self) -> tuple[int, int, int]:
        """Return gpa and size of the largest run of RAM, and where it begins in its memfd."""
        return next(run for run in self._ram if run[0] == self._main_start)

    @property
    def is_private(self) -> bool:
        """Tell whether what is written to the RAM is seen in this process only: the memfd is a frozen state, of this domain or another."""
        return self._private

    def hva(self, gpa: int) -> int:
        """Return our address of a guest-physical address; says nothing about its being populated."""
        return self._base + gpa

    # -- populating ---------------------------------------------------------------------------------------------------

    def add_ram(self, gpa: int, size: int) -> None:
        """Back [gpa, gpa + size) with zeroed RAM, both page-aligned. Raises OSError when the host has no memory for it."""
        offset = self._ram_size
        self._ram_size += size
        os.ftruncate(self._fd, self._ram_size)
        hva = libc.map_memory(
            self._base + gpa, size, libc.PROT_READ | libc.PROT_WRITE, libc.MAP_SHARED | libc.MAP_FIXED, self._fd, offset
        )
        if size >= _HUGE_PAGE:
            libc.advise(hva, size, libc.MADV_HUGEPAGE)
        self._note_ram((gpa, size, offset), bytearray(size >> PAGE_SHIFT))

    def prefault(self, gpa: int, size: int) -> bool:
        """Have the host give its memory to [gpa, gpa + size) now, both page-aligned, and not as each page is touched; tell whether it did.

        Ref: madvise(2), MADV_POPULATE_WRITE; Linux 5.14
        """
        return libc.advise(self._base + gpa, size, libc.MADV_POPULATE_WRITE)

    def _note_ram(self, ram: tuple[int, int, int], absent: bytearray) -> None:
        gpa, size, _ = ram
        self._ram.append(ram)
        self._absent[gpa] = absent
        self._ram_pages += absent.count(0)
        self._add_region(Region(gpa, size, self._base + gpa))
        if size > self._main_end - self._main_start:
            self._main_start, self._main_end = gpa, gpa + size

    def freeze(self) -> FrozenRam:
        """Return the RAM as it is now, to be used by any number of spaces; this one goes on with a private copy of what it changes.

        Nobody may use the memory meanwhile, and who has mapped the RAM elsewhere must let go before it is sealed. Frames that are
        placed are no part of it.
        """
        from xenpy.frozen import FrozenRam, copy_of

        runs = tuple((*run, bytes(self._absent[run[0]])) for run in self._ram)
        if self._private:
            return copy_of(self._base, runs)
        self._private = True
        for gpa, size, offset in self._ram:
            self._map_private(gpa, size, self._fd, offset)
        for gfn, frame in self._placed.items():
            if self._region_at(gfn << PAGE_SHIFT) is not None:
                self.place(gfn, frame)
        return FrozenRam(os.dup(self._fd), runs)

    def adopt(self, ram: FrozenRam) -> None:
        """Have a frozen state as RAM, with a private copy of what is changed; in a space that has none."""
        self._private = True
        for gpa, size, offset, absent in ram.runs:
            self._map_private(gpa, size, ram.fd, offset)
            self._note_ram((gpa, size, offset), bytearray(absent))

    def _map_private(self, gpa: int, size: int, fd: int = -1, offset: int = 0) -> None:
        """Map part of a file copy-on-write, or zeroes."""
        sharing = libc.MAP_PRIVATE | libc.MAP_FIXED | (libc.MAP_ANONYMOUS if fd < 0 else 0)
        libc.map_memory(self._base + gpa, size, libc.PROT_READ | libc.PROT_WRITE, sharing, fd, offset)

    def add_frames(self, gpa: int, pool: FramePool) -> None:
        """Show all of a pool's frames, those not yet allocated too, from `gpa` on."""
        hva = libc.map_memory(
            self._base + gpa, pool.size, libc.PROT_READ | libc.PROT_WRITE, libc.MAP_SHARED | libc.MAP_FIXED, pool.fd, 0
        )
        self._add_region(Region(gpa, pool.size, hva))

    def add_window(self, gpa: int, size: int) -> None:
        """Have a range where frames are placed and taken out again without a change of memory slots; elsewhere it reads as zeroes."""
        prot, how = libc.PROT_READ | libc.PROT_WRITE, libc.MAP_PRIVATE | libc.MAP_ANONYMOUS | libc.MAP_NORESERVE
        self._add_region(Region(gpa, size, libc.map_memory(self._base + gpa, size, prot, how | libc.MAP_FIXED)))

    def place(self, gfn: int, frame: Frame, *, readonly: bool = False) -> None:
        """Map a frame at a gfn, over RAM or where nothing is.

        A read-only frame is mapped copy-on-write: whoever writes there all the same, guest or VMM, writes to a copy. Raises
        XenError(EINVAL) beyond the guest-physical space.
        """
        gpa = gfn << PAGE_SHIFT
        if gfn < 0 or gpa >= 1 << ADDRESS_BITS:
            raise XenError(Errno.EINVAL, f"gfn {gfn:#x} is beyond {ADDRESS_BITS} address bits")
        if frame.fd < 0:
            raise XenError(
                Errno.EINVAL, "a page of a fork's RAM, or of a guest that has been forked, is nobody else's to map"
            )
        prot = libc.PROT_READ | libc.PROT_WRITE
        sharing = libc.MAP_PRIVATE if readonly else libc.MAP_SHARED
        libc.map_memory(self._base + gpa, PAGE_SIZE, prot, sharing | libc.MAP_FIXED, frame.fd, frame.offset)
        in_slot = self._region_at(gpa) is not None
        ram = self._ram_at(gpa)
        if ram is not None and gfn not in self._placed:
            self._mark(ram, gpa, absent=True)
            if not self._private:
                self._punch(ram, gpa)
        self._placed[gfn] = frame
        if not in_slot:
            self._add_region(Region(gpa, PAGE_SIZE, self._base + gpa, readonly))

    def unplace(self, gfn: int) -> Frame | None:
        """Unmap a placed frame and return it, or None if none is there; the gfn is left unpopulated."""
        frame = self._placed.pop(gfn, None)
        if frame is None:
            return None
        gpa = gfn << PAGE_SHIFT
        ram = self._ram_at(gpa)
        if ram is not None:
            self._map_ram_page(ram, gpa)
        else:
            # A view of the page may still be held; an anonymous page keeps it from faulting us.
            prot = libc.PROT_READ | libc.PROT_WRITE
            if gpa in self._starts:
                self._remove_region(gpa)  # it has one of its own, unless it is in a window
            libc.map_memory(self._base + gpa, PAGE_SIZE, prot, libc.MAP_PRIVATE | libc.MAP_ANONYMOUS | libc.MAP_FIXED)
        return frame

    def placed(self, gfn: int) -> Frame | None:
        """Return the frame placed at a gfn, or None."""
        return self._placed.get(gfn)

    def placed_gfns(self, frame: Frame) -> list[int]:
        """Return the gfns where a frame is placed."""
        return [gfn for gfn, placed in self._placed.items() if placed == frame]

    def all_placed(self) -> tuple[tuple[int, Frame], ...]:
        """Return every gfn where a frame is placed, with the frame."""
        return tuple(self._placed.items())

    # -- ballooning ---------------------------------------------------------------------------------------------------

    def release(self, gfn: int) -> bool:
        """Give the RAM page of a gfn back to the host; tell whether there was one.

        A guest that touches the gfn afterwards finds a zero page.
        """
        gpa = gfn << PAGE_SHIFT
        ram = self._ram_at(gpa)
        if ram is None or gfn in self._placed or self._is_absent(ram, gpa):
            return False
        self._mark(ram, gpa, absent=True)
        self._punch(ram, gpa)
        return True

    def populate(self, gfn: int) -> bool:
        """Put a zeroed RAM page back at a gfn that was RAM at start; tell whether the gfn was one that lacked it."""
        ram, gpa = self._ram_at(gfn << PAGE_SHIFT), gfn << PAGE_SHIFT
        if ram is None or not self.lacks(gfn):
            return False
        self._mark(ram, gpa, absent=False)
        self._punch(ram, gpa)  # whatever was written to it meanwhile is gone
        return True

    def lacks(self, gfn: int) -> bool:
        """Tell whether a gfn was RAM at start and has no page at present."""
        ram = self._ram_at(gfn << PAGE_SHIFT)
        return ram is not None and gfn not in self._placed and self._is_absent(ram, gfn << PAGE_SHIFT)

    def is_ram(self, gfn: int) -> bool:
        """Tell whether a gfn holds RAM of the guest's own at present."""
        gpa = gfn << PAGE_SHIFT
        ram = self._ram_at(gpa)
        return ram is not None and gfn not in self._placed and not self._is_absent(ram, gpa)

    def frame_of(self, gfn: int) -> Frame | None:
        """Return the frame behind a gfn, RAM or placed, or None; for mapping it into another domain."""
        placed = self._placed.get(gfn)
        if placed is not None:
            return placed
        gpa = gfn << PAGE_SHIFT
        ram = self._ram_at(gpa)
        if ram is None or self._is_absent(ram, gpa):
            return None
        return Frame(-1, gpa) if self._private else Frame(self._fd, ram[2] + gpa - ram[0])

    @property
    def ram_pages(self) -> int:
        """Return how many RAM pages the guest holds at present."""
        return self._ram_pages

    @property
    def max_gfn(self) -> int:
        """Return the highest populated gfn."""
        last = self._regions[-1]
        return (last.gpa + last.size - 1) >> PAGE_SHIFT

    # -- access -------------------------------------------------------------------------------------------------------

    def check(self, gpa: int, size: int) -> None:
        """Raise XenError(EFAULT) unless all of [gpa, gpa + size) is populated; nothing (size 0) may lie anywhere."""
        if self._main_start <= gpa <= gpa + size <= self._main_end:
            return
        if size < 0:
            raise XenError(Errno.EFAULT, f"{size} bytes at gpa {gpa:#x}")
        while size > 0:
            region = self._region_at(gpa)
            if region is None:
                raise XenError(Errno.EFAULT, f"gpa {gpa:#x} is not populated")
            step = region.gpa + region.size - gpa
            gpa += step
            size -= step

    def read(self, gpa: int, size: int) -> bytes:
        """Return a copy of `size` bytes. Raises XenError(EFAULT)."""
        self.check(gpa, size)
        return bytes(self._view[gpa : gpa + size])

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Copy bytes in. Raises XenError(EFAULT)."""
        size = len(data)
        self.check(gpa, size)
        self._view[gpa : gpa + size] = data

    def view(self, gpa: int, size: int) -> memoryview:
        """Return a live writable view. Raises XenError(EFAULT).

        It follows the guest-physical address: if another page is placed there later, the view shows that page.
        """
        self.check(gpa, size)
        return self._view[gpa : gpa + size]

    def read_u64(self, gpa: int) -> int:
        """Return the 64-bit word at an 8-aligned gpa. Raises XenError(EFAULT)."""
        self.check(gpa, 8)
        return self.u64[gpa >> 3]

    def fill(self, pieces: Iterable[tuple[int, bytes]]) -> None:
        """Write several (gpa, bytes) pieces. Raises XenError(EFAULT)."""
        for gpa, data in pieces:
            self.write(gpa, data)

    def close(self) -> None:
        """Unmap everything; views handed out must not be used any more."""
        if self._fd >= 0:
            self.u64.release()
            self._view.release()
            libc.unmap_memory(self._base, 1 << ADDRESS_BITS)
            os.close(self._fd)
            self._fd = -1

    # -- internals ----------------------------------------------------------------------------------------------------

    def _region_at(self, gpa: int) -> Region | None:
        index = bisect_right(self._starts, gpa) - 1
        if index < 0:
            return None
        region = self._regions[index]
        return region if gpa < region.gpa + region.size else None

    def _add_region(self, region: Region) -> None:
        index = bisect_right(self._starts, region.gpa)
        self._starts.insert(index, region.gpa)
        self._regions.insert(index, region)
        self.on_region(region)

    def _remove_region(self, gpa: int) -> None:
        index = self._starts.index(gpa)
        region = self._regions[index]
        del self._starts[index], self._regions[index]
        self.on_region(Region(gpa, 0, region.hva))

    def _ram_at(self, gpa: int) -> tuple[int, int, int] | None:
        for ram in self._ram:
            if ram[0] <= gpa < ram[0] + ram[1]:
                return ram
        return None

    def _is_absent(self, ram: tuple[int, int, int], gpa: int) -> bool:
        return bool(self._absent[ram[0]][(gpa - ram[0]) >> PAGE_SHIFT])

    def _mark(self, ram: tuple[int, int, int], gpa: int, *, absent: bool) -> None:
        absents = self._absent[ram[0]]
        index = (gpa - ram[0]) >> PAGE_SHIFT
        self._ram_pages += absents[index] - absent
        absents[index] = absent

    def _map_ram_page(self, ram: tuple[int, int, int], gpa: int) -> None:
        if self._private:
            self._map_private(gpa, PAGE_SIZE)
            return
        offset = ram[2] + gpa - ram[0]
        prot = libc.PROT_READ | libc.PROT_WRITE
        libc.map_memory(self._base + gpa, PAGE_SIZE, prot, libc.MAP_SHARED | libc.MAP_FIXED, self._fd, offset)

    def _punch(self, ram: tuple[int, int, int], gpa: int) -> None:
        if self._private:
            self._map_private(gpa, PAGE_SIZE)
            return
        offset = ram[2] + gpa - ram[0]
        libc.punch_hole(self._fd, offset, PAGE_SIZE)
