"""What in-guest code tells of the hypercalls that it carries out by itself, while somebody listens.

A vCPU's records lie in the RECORDS pages of its window; State.RECORD points to the next one, and is 0 while nobody listens: then a
test and a jump not taken are all that it costs. A record is written before what it tells of is done, and counts when that has been
done. Without room for one the hypercall is handed on, so none is missed; State.RECORD above State.RECORDS_END hands every one on.
"""

from __future__ import annotations

from enum import IntFlag
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from xenpy.asm import mem
from xenpy.asm.registers import eax, rax, rcx, rdi, rdx, rsi
from xenpy.memory import PAGE_SIZE
from xenpy.shim.layout import RECORDS_PAGES, Page, State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from xenpy.asm import Assembler, Mem
    from xenpy.asm.registers import Reg
    from xenpy.shim.memory import Window

_LAYOUT: Final = Struct("<QQQQQQQQ")
RECORD_SIZE: Final = _LAYOUT.size
_TSC, _FIRST, _SECOND, _WORDS = 8, 16, 24, 32
_ROOM_BEHIND: Final = 2 * RECORD_SIZE
"""Room that a draft leaves: for a second element, and for the multicall around it."""
_NUMBER_MASK: Final = 0xFF


class Flag(IntFlag):
    """What a record's first word says beside the number of the hypercall."""

    ELEMENT = 1 << 8
    """One element of a list, of which `second` are left, this one included."""
    INNER = 1 << 9
    """Within a multicall, whose own record comes behind."""


class Recorded(NamedTuple):
    """A record: a hypercall, or an element of one's list."""

    head: int
    tsc: int
    first: int
    """RDI: of a list the element's address."""
    second: int
    words: tuple[int, int, int, int]
    """Of a list the element."""

    @property
    def number(self) -> int:
        """The number of the hypercall."""
        return self.head & _NUMBER_MASK

    @property
    def is_element(self) -> bool:
        """Whether it is an element of a list."""
        return bool(self.head & Flag.ELEMENT)

    @property
    def is_inner(self) -> bool:
        """Whether it is a call within a multicall."""
        return bool(self.head & Flag.INNER)


class Recorder:
    """Emits the code. `state` makes the operand of a State word."""

    def __init__(self, a: Assembler, state: Callable[[State], Mem], name: str = "call") -> None:
        self._a = a
        self._state = state
        self._name = name
        self._labels = 0

    def _label(self) -> str:
        self._labels += 1
        return f"unrecorded_{self._name}_{self._labels}"

    def emit(self) -> None:
        """Emit `draft`: write a record of EAX, RDI and RSI, and have RAX point to it; CF tells that there is no room.

        No other register is lost.
        """
        a = self._a
        a.label("draft")
        a.push(rdx)
        a.push(rcx)
        a.mov(rcx, self._state(State.RECORD))
        a.cmp(rcx, self._state(State.RECORDS_END))
        a.jae("no_room")
        a.mov(mem(rcx), rax)
        a.rdtsc()
        a.shl(rdx, 32)
        a.or_(rax, rdx)
        a.mov(mem(rcx, _TSC), rax)
        a.mov(mem(rcx, _FIRST), rdi)
        a.mov(mem(rcx, _SECOND), rsi)
        a.mov(rax, rcx)
        a.pop(rcx)
        a.pop(rdx)
        a.clc()
        a.ret()
        a.label("no_room")
        a.pop(rcx)
        a.pop(rdx)
        a.stc()
        a.ret()

    def draft(self, head: int, no_room: str, *, words: tuple[Reg, ...] = ()) -> None:
        """Emit: begin a record of RDI, RSI and `words`; go to `no_room` if there is none. RAX is lost."""
        a, skip = self._a, self._label()
        a.cmp(self._state(State.RECORD), 0, size=8)
        a.jz(skip)
        a.mov(eax, head)
        a.call("draft")
        a.jc(no_room)
        for index, word in enumerate(words):
            a.mov(mem(rax, _WORDS + index * 8), word)
        a.label(skip)

    def draft_list(self, head: int, no_room: str, size: int, *, left: Mem | None = None, count: int = 1) -> None:
        """Emit: begin a record of each of the `count` elements of `size` bytes at RDI. RAX and RCX are lost.

        `left` is where the number of elements is that are left, instead of RSI.
        """
        a, skip = self._a, self._label()
        a.cmp(self._state(State.RECORD), 0, size=8)
        a.jz(skip)
        a.mov(eax, head | Flag.ELEMENT)
        a.call("draft")
        a.jc(no_room)
        if left is not None:
            a.mov(rcx, left)
            a.mov(mem(rax, _SECOND), rcx)
        for index in range(count):
            at = index * RECORD_SIZE
            if index:
                for field in (0, _TSC, _FIRST):
                    a.mov(rcx, mem(rax, field))
                    a.mov(mem(rax, at + field), rcx)
                a.mov(mem(rax, at + _SECOND), count - index, size=8)
            for offset in range(0, size, 8):
                a.mov(rcx, mem(rdi, index * size + offset))
                a.mov(mem(rax, at + _WORDS + offset), rcx)
        a.label(skip)

    def commit(self, count: int = 1) -> None:
        """Emit: have what was begun count."""
        a, skip = self._a, self._label()
        a.cmp(self._state(State.RECORD), 0, size=8)
        a.jz(skip)
        a.add(self._state(State.RECORD), count * RECORD_SIZE, size=8)
        a.label(skip)

    def end_multicall(self, head: int) -> None:
        """Emit: record a multicall whose calls have all been carried out; there is always room. RAX is lost."""
        a, skip = self._a, self._label()
        a.cmp(self._state(State.RECORD), 0, size=8)
        a.jz(skip)
        a.push(rcx)
        a.push(rdx)
        a.mov(rcx, self._state(State.RECORD))
        a.mov(mem(rcx), head, size=8)
        a.rdtsc()
        a.shl(rdx, 32)
        a.or_(rax, rdx)
        a.mov(mem(rcx, _TSC), rax)
        a.mov(mem(rcx, _FIRST), rdi)
        a.pop(rdx)
        a.pop(rcx)
        a.label(skip)
        self.commit()


# -- our side, while the vCPU is not within in-guest code ---------------------------------------------------------------


def listen(window: Window) -> None:
    """Have a vCPU's in-guest code record what it does."""
    window.state[State.RECORDS_END] = window.page_va(Page.RECORDS) + RECORDS_PAGES * PAGE_SIZE - _ROOM_BEHIND
    window.state[State.RECORD] = window.page_va(Page.RECORDS)


def hand_on_all(window: Window) -> None:
    """Have a vCPU's in-guest code carry out nothing."""
    window.state[State.RECORDS_END] = 0
    window.state[State.RECORD] = window.page_va(Page.RECORDS)


def ignore(window: Window) -> None:
    """Have a vCPU's in-guest code record nothing."""
    window.state[State.RECORD] = 0


def take(window: Window) -> bytes:
    """Return what has been recorded since the last time, for `parse`."""
    first = window.page_va(Page.RECORDS)
    # The guest's kernel can write here.
    size = min(max(window.state[State.RECORD] - first, 0), window.records.nbytes)
    if not size:
        return b""
    window.state[State.RECORD] = first
    return bytes(window.records[: size - size % RECORD_SIZE])


def parse(data: bytes) -> Iterator[Recorded]:
    """Yield the records that `take` returned."""
    for head, tsc, one, two, *words in _LAYOUT.iter_unpack(data):
        yield Recorded(head, tsc, one, two, (words[0], words[1], words[2], words[3]))
