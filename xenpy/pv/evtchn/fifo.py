"""The FIFO ABI: an event word a port, linked into a queue a vCPU and priority.

The guest owns each queue's head and takes words off it; we own the tail and append. A word is in a queue while LINKED
is set in it, and the guest clears LINKED in the same step in which it reads LINK, so one compare-and-exchange on the
tail's word tells whether the queue still ended there.

Ref: xen/include/public/event_channel.h; "Event Channels - FIFO-based ABI", draft H
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy import atomics, libc
from xenpy.abi.event_channel import (
    EVTCHN_FIFO_BUSY,
    EVTCHN_FIFO_LINK_BITS,
    EVTCHN_FIFO_LINKED,
    EVTCHN_FIFO_MASKED,
    EVTCHN_FIFO_MAX_QUEUES,
    EVTCHN_FIFO_NR_CHANNELS,
    EVTCHN_FIFO_PENDING,
    EVTCHN_FIFO_PRIORITY_MIN,
    EVTCHN_FIFO_WORDS_PER_PAGE,
)
from xenpy.errors import Errno, XenError
from xenpy.memory import PAGE_SHIFT, PAGE_SIZE
from xenpy.pv.evtchn.port import CLOSED, FifoState

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.memory import GuestMemory
    from xenpy.pv.evtchn.port import Port

_PENDING: Final = 1 << EVTCHN_FIFO_PENDING
_MASKED: Final = 1 << EVTCHN_FIFO_MASKED
_LINKED: Final = 1 << EVTCHN_FIFO_LINKED
_BUSY: Final = 1 << EVTCHN_FIFO_BUSY
_LINK_MASK: Final = (1 << EVTCHN_FIFO_LINK_BITS) - 1
_UNLINK_MASK: Final = 0xFFFFFFFF & ~(_BUSY | _LINK_MASK)

_WORD_SIZE: Final = 4
_WORD_BITS: Final = 32
_MAX_ARRAY_PAGES: Final = EVTCHN_FIFO_NR_CHANNELS // EVTCHN_FIFO_WORDS_PER_PAGE
_CONTROL_BLOCK_SIZE: Final = 4 + 4 + 4 * EVTCHN_FIFO_MAX_QUEUES
_CONTROL_BLOCK_ALIGNMENT: Final = 8
_HEAD_INDEX: Final = 2
"""Where head[] starts in struct evtchn_fifo_control_block, in words; `ready` is the first."""

_GUEST_CHANGES: Final = 4
"""Changes that a guest may make to a word we marked BUSY: set MASKED, clear MASKED, clear PENDING, clear LINKED."""


class _Page:
    """A page of guest RAM that stays mapped for us whatever the guest places at its gfn afterwards.

    One of private RAM cannot be mapped twice: there a guest that places another page has us use that one. Raises XenError(EINVAL)
    unless the gfn is RAM of the guest's own.
    """

    __slots__ = ("_mapped", "gfn", "hva", "words")

    def __init__(self, memory: GuestMemory, gfn: int) -> None:
        frame = memory.frame_of(gfn) if memory.is_ram(gfn) else None
        if frame is None:
            raise XenError(Errno.EINVAL, f"gfn {gfn:#x} is not RAM")
        self.gfn = gfn
        self._mapped = frame.fd >= 0
        self.hva = memory.hva(gfn << PAGE_SHIFT)
        if self._mapped:
            self.hva = libc.map_memory(
                0, PAGE_SIZE, libc.PROT_READ | libc.PROT_WRITE, libc.MAP_SHARED, frame.fd, frame.offset
            )
        self.words = libc.buffer(self.hva, PAGE_SIZE).cast("I")

    def close(self) -> None:
        self.words.release()
        if self._mapped:
            libc.unmap_memory(self.hva, PAGE_SIZE)


class _ControlBlock:
    """A vCPU's control block: which queues have something, and where each starts."""

    __slots__ = ("hva", "index", "offset", "page", "words")

    def __init__(self, page: _Page, offset: int) -> None:
        self.page = page
        self.offset = offset
        self.hva = page.hva + offset
        self.words = page.words
        self.index = offset // _WORD_SIZE + _HEAD_INDEX


class Queue:
    """A vCPU's queue of one priority.

    `tail` is the port appended last, 0 if there is none; the guest may have taken it off since.
    """

    __slots__ = ("priority", "tail", "vcpu_id")

    def __init__(self, vcpu_id: int, priority: int) -> None:
        self.vcpu_id = vcpu_id
        self.priority = priority
        self.tail = 0


class Fifo:
    """Delivery through event words.

    `mark_upcall` makes an upcall pending on a vCPU; `wake_poller` hears of every port that becomes pending.
    """

    __slots__ = ("_array", "_blocks", "_mark_upcall", "_memory", "_queues", "_wake_poller")

    def __init__(
        self,
        memory: GuestMemory,
        nr_vcpus: int,
        mark_upcall: Callable[[int], None],
        wake_poller: Callable[[int], None],
    ) -> None:
        self._memory = memory
        self._mark_upcall = mark_upcall
        self._wake_poller = wake_poller
        self._array: list[_Page] = []
        self._blocks: list[_ControlBlock | None] = [None] * nr_vcpus
        self._queues = [[Queue(vcpu_id, prio) for prio in range(EVTCHN_FIFO_MAX_QUEUES)] for vcpu_id in range(nr_vcpus)]

    @property
    def max_ports(self) -> int:
        """Return 131072."""
        return EVTCHN_FIFO_NR_CHANNELS

    @property
    def array_ports(self) -> int:
        """Return how many ports have a word in the event array."""
        return len(self._array) * EVTCHN_FIFO_WORDS_PER_PAGE

    # -- set-up -------------------------------------------------------------------------------------------------------

    def add_control_block(self, vcpu_id: int, gfn: int, offset: int) -> None:
        """Take a vCPU's control block into use; `offset` in bytes.

        Raises XenError(EINVAL): misaligned, crossing the page, not RAM, or the vCPU has one.
        """
        if offset > PAGE_SIZE - _CONTROL_BLOCK_SIZE or offset % _CONTROL_BLOCK_ALIGNMENT:
            raise XenError(Errno.EINVAL, f"control block at offset {offset:#x}")
        if self._blocks[vcpu_id] is not None:
            raise XenError(Errno.EINVAL, f"vcpu {vcpu_id} has a control block")
        self._blocks[vcpu_id] = _ControlBlock(_Page(self._memory, gfn), offset)

    def add_array_page(self, gfn: int) -> range:
        """Append a page to the event array; return the ports that have words now and had none.

        Raises XenError: ENOSPC (the array is complete), EINVAL (not RAM).
        """
        if len(self._array) >= _MAX_ARRAY_PAGES:
            raise XenError(Errno.ENOSPC, "the event array is complete")
        first = self.array_ports
        self._array.append(_Page(self._memory, gfn))
        return range(first, self.array_ports)

    def queue(self, vcpu_id: int, priority: int) -> Queue:
        """Return a vCPU's queue of a priority."""
        return self._queues[vcpu_id][priority]

    def close(self) -> None:
        """Let go of the guest's pages."""
        for page in self._array:
            page.close()
        for block in self._blocks:
            if block is not None:
                block.page.close()
        self._array.clear()
        self._blocks = [None] * len(self._blocks)

    def remap(self) -> None:
        """Find the guest's pages again when its RAM has become private; nobody sends meanwhile."""
        state = self.state()
        self.close()
        self.load(state)

    def state(self) -> FifoState:
        """Return all of it that is not in guest memory."""
        return FifoState(
            control=tuple(None if block is None else (block.page.gfn, block.offset) for block in self._blocks),
            array=tuple(page.gfn for page in self._array),
            tails=tuple(tuple(queue.tail for queue in queues) for queues in self._queues),
        )

    def load(self, state: FifoState) -> None:
        """Take over what `state` returned, in a domain with the same vCPUs and memory. Raises XenError(EINVAL)."""
        for vcpu_id, control in enumerate(state.control):
            if control is not None:
                self.add_control_block(vcpu_id, *control)
        for gfn in state.array:
            self.add_array_page(gfn)
        for queues, tails in zip(self._queues, state.tails, strict=True):
            for queue, tail in zip(queues, tails, strict=True):
                queue.tail = tail

    # -- events -------------------------------------------------------------------------------------------------------

    def set_pending(self, entry: Port) -> None:
        """Set PENDING and, unless the word is masked or in a queue, append it to its queue.

        Without a word the event waits until the array grows; without a control block it stays pending and in no queue.
        """
        number = entry.number
        page_index, index = divmod(number, EVTCHN_FIFO_WORDS_PER_PAGE)
        if page_index >= len(self._array):
            entry.pending = True
            return
        page = self._array[page_index]
        block = self._blocks[entry.vcpu_id]
        word = page.words[index]
        append = False
        for _ in range(_GUEST_CHANGES):
            append = block is not None and not word & (_MASKED | _LINKED)
            # Even if nothing changes: a full barrier between what the event announces and our look at the word.
            found = atomics.cmpxchg32(
                page.hva + index * _WORD_SIZE, word, word | _PENDING | _LINKED if append else word | _PENDING
            )
            if found == word:
                break
            word = found
        else:
            # The guest changes the word all the time: one bit at a time always succeeds.
            bit = index * _WORD_BITS
            word = _PENDING * atomics.set_bit(page.hva, bit + EVTCHN_FIFO_PENDING)
            append = block is not None and not page.words[index] & (_MASKED | _LINKED)
            append = append and not atomics.set_bit(page.hva, bit + EVTCHN_FIFO_LINKED)
        if append and block is not None:
            self._append(entry, block)
        if not word & _PENDING:
            self._wake_poller(number)

    def clear_pending(self, entry: Port) -> None:
        """Clear PENDING. A queued word stays queued: the guest takes it off and ignores it."""
        entry.pending = False
        page, index = divmod(entry.number, EVTCHN_FIFO_WORDS_PER_PAGE)
        if page < len(self._array):
            atomics.clear_bit(self._array[page].hva, index * _WORD_BITS + EVTCHN_FIFO_PENDING)

    def is_pending(self, entry: Port) -> bool:
        """Tell whether PENDING is set, or an event waits for the array to grow."""
        return entry.pending or bool(self._word(entry.number) & _PENDING)

    def is_masked(self, entry: Port) -> bool:
        """Tell whether MASKED is set; a port without a word is masked."""
        return entry.number >= self.array_ports or bool(self._word(entry.number) & _MASKED)

    def unmask(self, entry: Port) -> None:
        """Clear MASKED; queue the word if it is pending."""
        page, index = divmod(entry.number, EVTCHN_FIFO_WORDS_PER_PAGE)
        if page >= len(self._array):
            return
        atomics.clear_bit(self._array[page].hva, index * _WORD_BITS + EVTCHN_FIFO_MASKED)
        if self._word(entry.number) & _PENDING:
            self.set_pending(entry)

    def is_busy(self, number: int) -> bool:
        """Tell whether the word of a port is in a queue."""
        return bool(self._word(number) & _LINKED)

    def set_priority(self, entry: Port, priority: int) -> None:
        """Set the queue of future events; one that is queued stays where it is. Raises XenError: EACCES, EINVAL."""
        if entry.state == CLOSED:
            raise XenError(Errno.EACCES, f"port {entry.number} is closed")
        if priority > EVTCHN_FIFO_PRIORITY_MIN:
            raise XenError(Errno.EINVAL, f"priority {priority}")
        entry.priority = priority

    # -- internals ----------------------------------------------------------------------------------------------------

    def _word(self, number: int) -> int:
        page, index = divmod(number, EVTCHN_FIFO_WORDS_PER_PAGE)
        return self._array[page].words[index] if page < len(self._array) else 0

    def _append(self, entry: Port, block: _ControlBlock) -> None:
        """Put a word in which we have just set LINKED at the end of its port's queue."""
        number = entry.number
        priority = entry.priority
        queue = self._queues[entry.vcpu_id][priority]
        last = entry.last_queue
        # The word was in no queue, so the queue whose last word it was is empty. Its LINKED must not be taken for
        # membership there, whether that queue is this one or the one the port has moved from.
        if last is not None and last.tail == number:
            last.tail = 0
        entry.last_queue = queue
        appended = queue.tail != 0 and self._link(queue.tail, number)
        queue.tail = number
        if appended:
            return
        block.words[block.index + priority] = number
        if not atomics.set_bit(block.hva, priority):
            self._mark_upcall(entry.vcpu_id)

    def _link(self, tail: int, number: int) -> bool:
        """Make the word of port `tail` point to another if it is still queued; tell whether it was."""
        page_index, index = divmod(tail, EVTCHN_FIFO_WORDS_PER_PAGE)
        page = self._array[page_index]
        hva = page.hva + index * _WORD_SIZE
        word = page.words[index]
        if not word & _LINKED:
            return False
        if atomics.cmpxchg32(hva, word, word & _UNLINK_MASK | number) == word:
            return True
        # BUSY keeps a guest from unmasking, so that it runs out of changes before we run out of attempts.
        atomics.set_bit(page.hva, index * _WORD_BITS + EVTCHN_FIFO_BUSY)
        word = page.words[index]
        for _ in range(_GUEST_CHANGES):
            if not word & _LINKED:
                break
            found = atomics.cmpxchg32(hva, word, word & _UNLINK_MASK | number)
            if found == word:
                return True
            word = found
        atomics.clear_bit(page.hva, index * _WORD_BITS + EVTCHN_FIFO_BUSY)
        # Still linked after all this: the guest breaks the rules, and its event is lost.
        return bool(word & _LINKED)
