"""One hypercall in progress: its arguments, and the guest's memory as its pointers see it."""

from __future__ import annotations

from functools import cache
from struct import pack_into, unpack_from
from typing import TYPE_CHECKING, Any, Final

from xenpy.abi._xen64 import ffi
from xenpy.errors import Errno, XenError
from xenpy.memory import PAGE_MASK, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xenpy.hypercalls.protocols import Domain, Vcpu

_WORD_FORMAT: Final = {1: "B", 2: "H", 4: "I", 8: "Q"}
_MAX_COPY: Final = 1 << 20
"""No single argument array is larger than this; longer ones are walked piecewise."""


@cache
def _pointer_type(tag: str) -> Any:
    return ffi.typeof(f"struct {tag} *")


@cache
def struct_size(tag: str) -> int:
    """Return the size in bytes of a structure in the 64-bit layout."""
    return int(ffi.sizeof(f"struct {tag}"))


@cache
def _narrow_layout(tag: str) -> tuple[int, tuple[tuple[str, int, int, int, int], ...]]:
    """Return the i386 size of a structure and its fields' (path, offset, size, 64-bit offset, 64-bit size).

    Raises XenError(ENOSYS) for what only 64-bit guests have.
    """
    from xenpy.abi._xen32 import LAYOUTS

    layout: tuple[int, tuple[tuple[str, int, int, int, int], ...]] | None = LAYOUTS.get(f"struct {tag}")
    if layout is None:
        raise XenError(Errno.ENOSYS, f"struct {tag} is for 64-bit guests")
    return layout


def _convert(source: bytes | memoryview, target: Any, tag: str, *, widen: bool) -> None:
    for _, offset32, size32, offset64, size64 in _narrow_layout(tag)[1]:
        from_offset, from_size = (offset32, size32) if widen else (offset64, size64)
        to_offset, to_size = (offset64, size64) if widen else (offset32, size32)
        if size32 < 0:
            target[to_offset : to_offset - to_size] = source[from_offset : from_offset - from_size]
            continue
        (value,) = unpack_from(_WORD_FORMAT[from_size], source, from_offset)
        pack_into(_WORD_FORMAT[to_size], target, to_offset, value & ((1 << to_size * 8) - 1))


class Call:
    """A hypercall: who makes it, its number and arguments, and access to the memory its pointers name.

    `wide` tells the 64-bit ABI from the 32-bit one. Every access raises XenError(EFAULT) outside the guest's memory.
    """

    __slots__ = ("args", "checkpoint", "domain", "nr", "vcpu", "wide", "within")

    def __init__(
        self,
        domain: Domain,
        vcpu: Vcpu,
        nr: int,
        args: Sequence[int],
        *,
        wide: bool = True,
        checkpoint: Callable[[], None] | None = None,
        within: bool = False,
    ) -> None:
        self.domain = domain
        self.vcpu = vcpu
        self.nr = nr
        self.args = args
        self.wide = wide
        self.within = within
        """Whether another makes it: one of a multicall's, or what a legacy form stands for."""
        self.checkpoint: Callable[[], None] = checkpoint if checkpoint is not None else lambda: None
        """To be called in loops whose length the guest chooses: lets other domains in, and ends the call of a dying domain."""

    # -- bytes --------------------------------------------------------------------------------------------------------

    def read(self, gva: int, size: int) -> bytes:
        """Return a copy of `size` bytes at a guest-virtual address."""
        offset = gva & PAGE_MASK
        if offset + size <= PAGE_SIZE:
            return self.domain.memory.read(self.vcpu.translate(gva), size)
        self._check_size(size)
        out = bytearray()
        while size:
            step = min(size, PAGE_SIZE - (gva & PAGE_MASK))
            out += self.domain.memory.read(self.vcpu.translate(gva), step)
            gva += step
            size -= step
        return bytes(out)

    def write(self, gva: int, data: bytes | bytearray | memoryview) -> None:
        """Copy bytes to a guest-virtual address."""
        size = len(data)
        if (gva & PAGE_MASK) + size <= PAGE_SIZE:
            self.domain.memory.write(self.vcpu.translate(gva, write=True), data)
            return
        self._check_size(size)
        done = 0
        while done < size:
            step = min(size - done, PAGE_SIZE - (gva & PAGE_MASK))
            self.domain.memory.write(self.vcpu.translate(gva, write=True), data[done : done + step])
            gva += step
            done += step

    @staticmethod
    def _check_size(size: int) -> None:
        if size > _MAX_COPY:
            raise XenError(Errno.EFAULT, f"argument of {size:#x} bytes")

    # -- structures ---------------------------------------------------------------------------------------------------

    def struct(self, tag: str, gva: int) -> Any:
        """Return a copy of `struct tag`, in the 64-bit layout whatever the caller's."""
        value = ffi.new(_pointer_type(tag))
        if self.wide:
            ffi.buffer(value)[:] = self.read(gva, struct_size(tag))
        else:
            _convert(self.read(gva, _narrow_layout(tag)[0]), memoryview(ffi.buffer(value)), tag, widen=True)
        return value

    def store(self, tag: str, gva: int, value: Any) -> None:
        """Copy a structure out in the caller's layout."""
        if self.wide:
            self.write(gva, bytes(ffi.buffer(value)))
        else:
            data = bytearray(_narrow_layout(tag)[0])
            _convert(memoryview(ffi.buffer(value)), memoryview(data), tag, widen=False)
            self.write(gva, data)

    def struct_size(self, tag: str) -> int:
        """Return the size in bytes of a structure in the caller's layout: the stride of arrays of it."""
        return struct_size(tag) if self.wide else _narrow_layout(tag)[0]

    # -- arrays of numbers --------------------------------------------------------------------------------------------

    @property
    def word_size(self) -> int:
        """Return the size in bytes of the caller's unsigned long, xen_pfn_t and guest handles."""
        return 8 if self.wide else 4

    def words(self, gva: int, count: int, size: int = 0) -> tuple[int, ...]:
        """Return `count` unsigned numbers of `size` bytes each, by default the caller's xen_pfn_t."""
        size = size or self.word_size
        return unpack_from(f"{count}{_WORD_FORMAT[size]}", self.read(gva, count * size))

    def store_words(self, gva: int, values: Sequence[int], size: int = 0) -> None:
        """Copy out unsigned numbers of `size` bytes each, by default the caller's xen_pfn_t; excess bits are dropped."""
        size = size or self.word_size
        mask = (1 << size * 8) - 1
        data = bytearray(len(values) * size)
        pack_into(f"{len(values)}{_WORD_FORMAT[size]}", data, 0, *(value & mask for value in values))
        self.write(gva, data)
