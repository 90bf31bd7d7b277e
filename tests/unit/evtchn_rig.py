"""Two guests and domain 0 with event channels, and models of how a guest takes events."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from xenpy import atomics
from xenpy.abi.event_channel import (
    EVTCHN_FIFO_BUSY,
    EVTCHN_FIFO_LINK_BITS,
    EVTCHN_FIFO_LINKED,
    EVTCHN_FIFO_MASKED,
    EVTCHN_FIFO_PENDING,
)
from xenpy.errors import Errno, XenError
from xenpy.framepool import FramePool
from xenpy.memory import PAGE_SIZE, GuestMemory
from xenpy.pv.evtchn import EventChannels, HostPorts, PortTable
from xenpy.pv.shared_info import SharedInfo

if TYPE_CHECKING:
    from collections.abc import Iterator

PENDING, MASKED = 1 << EVTCHN_FIFO_PENDING, 1 << EVTCHN_FIFO_MASKED
LINKED, BUSY = 1 << EVTCHN_FIFO_LINKED, 1 << EVTCHN_FIFO_BUSY
LINK_MASK = (1 << EVTCHN_FIFO_LINK_BITS) - 1

RAM_PAGES = 64
CONTROL_GFN = 8  # of vCPU 0; the others' follow
ARRAY_GFN = 32
CONTROL_OFFSET = 0x100
VCPUS = 3


class Guest:
    """A domain's event channels with what they stand on; `upcalls` and `polled` record what was reported."""

    def __init__(self, domid: int, tables: dict[int, PortTable], *, max_ports: int = 1024) -> None:
        self.memory = GuestMemory()
        self.memory.add_ram(0, RAM_PAGES * PAGE_SIZE)
        self.pool = FramePool(8)
        self.shared_info = SharedInfo(self.pool, self.memory, VCPUS)
        self.upcalls: list[int] = []
        self.polled: list[int] = []
        self.tables = tables
        self.max_ports = max_ports
        self.evtchn = self.fresh_table(domid)
        tables[domid] = self.evtchn

    def fresh_table(self, domid: int) -> EventChannels:
        def lookup(wanted: int) -> PortTable:
            if wanted not in self.tables:
                raise XenError(Errno.ESRCH)
            return self.tables[wanted]

        return EventChannels(
            domid, self.shared_info, self.memory, VCPUS, lookup=lookup, upcall=self.upcalls.append,
            wake_poller=self.polled.append, max_ports=self.max_ports,
        )  # fmt: skip

    def take_upcalls(self) -> list[int]:
        """Take the upcalls as a vCPU does on entry: its pending flag is cleared."""
        taken = sorted(self.upcalls)
        self.upcalls.clear()
        for info in self.shared_info.vcpu_info:
            info.view[0] = 0
        return taken

    def drain_2l(self, vcpu_id: int) -> list[int]:
        """Take a vCPU's events as a guest under the 2-level ABI does."""
        info, shared = self.shared_info.vcpu_info[vcpu_id], self.shared_info
        bits = shared.layout.word_bits
        at = shared.layout.pending_sel
        info.view[0] = 0
        taken = []
        selector = int.from_bytes(info.view[at : at + bits // 8], "little")
        for word in range(bits):
            if selector >> word & 1:
                atomics.clear_bit(info.hva, at * 8 + word)
                for port in range(word * bits, (word + 1) * bits):
                    if shared.is_pending(port) and not shared.is_masked(port):
                        shared.clear_pending(port)
                        taken.append(port)
        return taken

    def close(self) -> None:
        self.evtchn.destroy()
        self.memory.close()
        self.pool.close()


class FifoGuest:
    """A guest's side of the FIFO ABI, one step at a time."""

    def __init__(self, guest: Guest, vcpus: int = VCPUS, pages: int = 1) -> None:
        self.guest = guest
        for vcpu_id in range(vcpus):
            assert guest.evtchn.init_control(CONTROL_GFN + vcpu_id, CONTROL_OFFSET, vcpu_id) == EVTCHN_FIFO_LINK_BITS
        self.heads = [[0] * 16 for _ in range(VCPUS)]
        self.ready = [0] * VCPUS
        self.words = guest.memory.view(ARRAY_GFN * PAGE_SIZE, 8 * PAGE_SIZE).cast("I")
        self.hva = guest.memory.hva(ARRAY_GFN * PAGE_SIZE)
        for page in range(pages):
            self.add_page(page)

    def add_page(self, page: int) -> None:
        for index in range(page * 1024, (page + 1) * 1024):
            self.words[index] = MASKED
        self.guest.evtchn.expand_array(ARRAY_GFN + page)

    def block(self, vcpu_id: int) -> memoryview:
        gpa = (CONTROL_GFN + vcpu_id) * PAGE_SIZE + CONTROL_OFFSET
        return self.guest.memory.view(gpa, 72).cast("I")

    def update(self, port: int, clear: int = 0, set_: int = 0) -> int:
        """Change a word atomically; return what it held."""
        while True:
            word = self.words[port]
            if atomics.cmpxchg32(self.hva + port * 4, word, word & ~clear | set_) == word:
                return word

    def mask(self, port: int) -> None:
        self.update(port, set_=MASKED)

    def unmask(self, port: int) -> None:
        """Unmask as a guest does: by itself if it can tell that nothing is pending, else through the hypervisor."""
        word = self.words[port]
        if word & (PENDING | BUSY) or atomics.cmpxchg32(self.hva + port * 4, word, word & ~MASKED) != word:
            self.guest.evtchn.unmask(port)

    def take_one(self, vcpu_id: int) -> tuple[int, int, bool] | None:
        """Take one word off a vCPU's queues; return (priority, port, whether it was an event), None if there is none."""
        block, heads = self.block(vcpu_id), self.heads[vcpu_id]
        gpa = (CONTROL_GFN + vcpu_id) * PAGE_SIZE + CONTROL_OFFSET
        self.ready[vcpu_id] |= atomics.xchg32(self.guest.memory.hva(gpa), 0)
        ready = self.ready[vcpu_id]
        if not ready:
            return None
        priority = (ready & -ready).bit_length() - 1
        port = heads[priority] or block[2 + priority]
        heads[priority] = self.update(port, clear=LINKED | LINK_MASK) & LINK_MASK
        if not heads[priority]:
            self.ready[vcpu_id] &= ~(1 << priority)
        word = self.words[port]
        handled = bool(word & PENDING and not word & MASKED)
        if handled:
            self.update(port, clear=PENDING)
        return priority, port, handled

    def drain(self, vcpu_id: int) -> list[int]:
        """Take all of a vCPU's events, in order."""
        self.guest.shared_info.vcpu_info[vcpu_id].view[0] = 0
        taken = []
        for _ in range(100_000):
            step = self.take_one(vcpu_id)
            if step is None:
                return taken
            if step[2]:
                taken.append(step[1])
        raise AssertionError("the queue has no end")


def ipis(guest: Guest, fifo: FifoGuest, count: int, vcpu_id: int = 0) -> list[int]:
    """Return ports for IPIs, unmasked."""
    ports = [guest.evtchn.bind_ipi(vcpu_id) for _ in range(count)]
    for port in ports:
        fifo.unmask(port)
    return ports


@contextmanager
def two_guests(**kwargs: int) -> Iterator[tuple[Guest, Guest, HostPorts]]:
    """Make domains 1, 2 and 0."""
    tables: dict[int, PortTable] = {}
    one, two = Guest(1, tables, **kwargs), Guest(2, tables, **kwargs)

    def lookup(wanted: int) -> PortTable:
        if wanted not in tables:
            raise XenError(Errno.ESRCH)
        return tables[wanted]

    host = HostPorts(0, lookup=lookup)
    tables[0] = host
    try:
        yield one, two, host
    finally:
        one.close()
        two.close()
