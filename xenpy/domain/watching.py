"""Watchpoints: memory whose change stops a domain.

A page with a watchpoint in it is read-only to the guest's processors, in KVM's memory slots, not in the guest's page tables: each store
there leaves the guest, is carried out by us, and stops it if it is to what is watched. Debug registers would cost nothing, but some hosts
do not load them. KVM makes a store of what it has read before, which is not atomic; so while there are watchpoints vCPUs enter the guest
in turns.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from xenpy.domain.areas import shared_pages
from xenpy.errors import Errno, XenError
from xenpy.kvm.constants import Cap, Exit, InternalError
from xenpy.memory import PAGE_MASK, PAGE_SHIFT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from xenpy.domain.domain import Domain
    from xenpy.domain.vcpu import Vcpu

_TURN_S: Final = 0.005
"""How long a vCPU is in the guest while another waits for its turn."""
_OPEN_NS: Final = 1_000_000
"""For how long there is nothing read-only when KVM cannot emulate a store."""
MAX_SIZE: Final = 4096
"""Bytes of a watchpoint."""


class Piece(NamedTuple):
    """What is watched within a page."""

    gva: int
    gpa: int
    size: int


class Watchpoints:
    """The watchpoints of a domain that a debugger has. Methods are for while it stands still."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._wanted: dict[tuple[int, int], list[Piece]] = {}
        self._pages: frozenset[int] = frozenset()
        """The gpas of the pages that are read-only at present."""
        self._values: dict[Piece, bytes] = {}
        self._turns = _Turns(len(domain.vcpus))

    def set(self, gva: int, size: int, pieces: Iterable[tuple[int, int]]) -> None:
        """Watch [gva, gva + size), which lies at `pieces`, each (gpa, size). Raises XenError: EFAULT, EPERM, EINVAL."""
        if not 0 < size <= MAX_SIZE:
            raise XenError(Errno.EINVAL, f"{size} bytes cannot be watched")
        found, here = [], gva
        for gpa, step in pieces:
            self._check(gpa)
            found.append(Piece(here, gpa, step))
            here += step
        self._wanted[gva, size] = found

    def _check(self, gpa: int) -> None:
        """Raise XenError(EPERM) for a page that the guest shares with us.

        What both write must be written by atomic instructions, and KVM's clock cannot be written to what is read-only.
        """
        domain = self._domain
        domain.check_writable(gpa)
        page = gpa >> PAGE_SHIFT
        infos = domain.shared_info.vcpu_info
        if (
            domain.memory.placed(page)
            or any(info.gpa is not None and info.gpa >> PAGE_SHIFT == page for info in infos)
            or any(page in shared_pages(vcpu) for vcpu in domain.vcpus)
        ):
            raise XenError(Errno.EPERM, f"gpa {gpa:#x} is in a page that the guest shares with Xen")

    def clear(self, gva: int, size: int) -> None:
        """Watch [gva, gva + size) no longer."""
        self._wanted.pop((gva, size), None)

    def drop(self) -> None:
        """Watch nothing any longer."""
        self._wanted.clear()
        self.apply()

    def apply(self) -> None:
        """Have the domain, which is about to go on, run with the watchpoints that there are by now."""
        memory, vm = self._domain.memory, self._domain.vm
        pieces = [piece for found in self._wanted.values() for piece in found]
        self._values = {piece: memory.read(piece.gpa, piece.size) for piece in pieces}
        pages = frozenset(piece.gpa & ~PAGE_MASK for piece in pieces)
        if pages == self._pages:
            return
        if bool(pages) != bool(self._pages):
            if vm.kvm.check(Cap.EXIT_ON_EMULATION_FAILURE):  # else ring 3 gets #UD
                vm.enable(Cap.EXIT_ON_EMULATION_FAILURE, bool(pages))
            for vcpu in self._domain.vcpus:
                vcpu.kvm.enter = partial(self._enter, vcpu) if pages else vcpu.kvm.run_guest
        self._pages = pages
        self._protect(pages)

    def _protect(self, pages: frozenset[int]) -> None:
        for region in self._domain.memory.regions:
            within = [page for page in pages if region.gpa <= page < region.gpa + region.size]
            self._domain.vm.protect(region, sorted(within))

    # -- in a vCPU's thread -------------------------------------------------------------------------------------------

    def _enter(self, vcpu: Vcpu) -> int:
        """Run the guest, and carry out what it stores to pages with watchpoints. The host's lock is not to be taken in here."""
        kvm = vcpu.kvm
        with self._turns.of(vcpu):
            reason = kvm.run_guest()
            if self._is_store(vcpu, reason):
                reason = self._store(vcpu)
            elif reason == Exit.INTERNAL_ERROR and kvm.run.internal.suberror == InternalError.EMULATION:
                reason = self._run_open(vcpu)
            self._compare(vcpu)
        if vcpu.caught is not None:
            kvm.run.immediate_exit = 1  # have it attend to that
        return reason

    def _is_store(self, vcpu: Vcpu, reason: int) -> bool:
        mmio = vcpu.kvm.run.mmio
        return reason == Exit.MMIO and bool(mmio.is_write) and mmio.phys_addr & ~PAGE_MASK in self._pages

    def _store(self, vcpu: Vcpu) -> int:
        """Carry out a store and all others of its instruction; return what comes of that instead."""
        kvm, memory = vcpu.kvm, self._domain.memory
        reason: int = Exit.MMIO
        while self._is_store(vcpu, reason):
            mmio = kvm.run.mmio
            gpa, data = int(mmio.phys_addr), bytes(mmio.data)[: mmio.len]
            memory.write(gpa, data)
            for piece in self._values:
                if piece.gpa < gpa + len(data) and gpa < piece.gpa + piece.size:
                    vcpu.caught = piece.gva
            reason = kvm.complete()
        return vcpu.after_store(reason)

    def _run_open(self, vcpu: Vcpu) -> int:
        """Have the processor itself execute what KVM cannot emulate, such as a vector instruction."""
        self._protect(frozenset())
        vcpu.kick_after(_OPEN_NS)
        reason = vcpu.kvm.run_guest()
        self._protect(self._pages)
        return reason

    def _compare(self, vcpu: Vcpu) -> None:
        """Find what has changed, whoever it was."""
        memory = self._domain.memory
        for piece, before in self._values.items():
            now = memory.read(piece.gpa, piece.size)
            if now != before:
                self._values[piece] = now
                vcpu.caught = piece.gva


class _Turns:
    """Which vCPU may be in the guest: the one that has waited longest."""

    def __init__(self, vcpus: int) -> None:
        self._alone = vcpus == 1
        self._queue: deque[Vcpu] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def of(self, vcpu: Vcpu) -> Iterator[None]:
        """Wait until it is a vCPU's turn, which ends with the `with`."""
        if self._alone:
            yield
            return
        with self._changed:
            self._queue.append(vcpu)
            while self._queue[0] is not vcpu:
                if not self._changed.wait(_TURN_S):
                    self._queue[0].kvm.kick()
        try:
            yield
        finally:
            with self._changed:
                self._queue.popleft()
                self._changed.notify_all()
