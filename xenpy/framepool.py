"""The hypervisor's own pages."""

from __future__ import annotations

import os
from dataclasses import dataclass

from xenpy import libc
from xenpy.errors import Errno, XenError
from xenpy.memory import PAGE_SHIFT, PAGE_SIZE, Frame


@dataclass(frozen=True, slots=True)
class PoolState:
    """A pool as plain data: its pages from the first on, and the offsets of those that are free."""

    content: bytes
    free: tuple[int, ...]


class FramePool:
    """The hypervisor's own pages, which a guest may map wherever it likes; zeroed when allocated.

    Each is also mapped once in our address space, so that we read and write it wherever the guest has put it.
    """

    def __init__(self, pages: int = 1024) -> None:
        self.size = pages << PAGE_SHIFT
        self.fd = libc.memfd("xenpy-frames", self.size)
        self._hva = libc.map_memory(0, self.size, libc.PROT_READ | libc.PROT_WRITE, libc.MAP_SHARED, self.fd)
        self._view = libc.buffer(self._hva, self.size)
        self.words = self._view.cast("Q")
        """All of it, live, as 64-bit words."""
        self._free: list[int] = []
        self._next = 0

    def allocate(self) -> Frame:
        """Return a zeroed page. Raises XenError(ENOMEM) when the pool is used up."""
        if self._free:
            offset = self._free.pop()
            self._view[offset : offset + PAGE_SIZE] = bytes(PAGE_SIZE)
        elif self._next < self.size:
            offset = self._next
            self._next += PAGE_SIZE
        else:
            raise XenError(Errno.ENOMEM, "hypervisor frame pool exhausted")
        return Frame(self.fd, offset)

    def free(self, frame: Frame) -> None:
        """Give a page back."""
        self._free.append(frame.offset)

    def state(self) -> PoolState:
        """Return a copy of what has been allocated."""
        return PoolState(bytes(self._view[: self._next]), tuple(self._free))

    def load(self, state: PoolState) -> None:
        """Have the contents and the free pages of another pool of this size."""
        self._next = len(state.content)
        self._view[: self._next] = state.content
        self._free = list(state.free)

    def at(self, offset: int) -> Frame:
        """Return the page at an offset."""
        return Frame(self.fd, offset)

    def owns(self, frame: Frame) -> bool:
        """Tell whether a frame is one of this pool's."""
        return frame.fd == self.fd

    def view(self, frame: Frame) -> memoryview:
        """Return the live page as a writable view of 4096 bytes."""
        return self._view[frame.offset : frame.offset + PAGE_SIZE]

    def hva(self, frame: Frame) -> int:
        """Return the address of the page in our own address space."""
        return self._hva + frame.offset

    def hva_of(self, offset: int) -> int:
        """Return the address of a byte of the pool."""
        return self._hva + offset

    def close(self) -> None:
        """Unmap and close; views handed out must not be used any more."""
        if self.fd >= 0:
            self.words.release()
            self._view.release()
            libc.unmap_memory(self._hva, self.size)
            os.close(self.fd)
            self.fd = -1
