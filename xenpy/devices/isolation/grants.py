"""What a device's process asks of us about its guest's grants, answered."""

from __future__ import annotations

from array import array
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from xenpy.devices.isolation.channel import ChannelError, Kind
from xenpy.devices.isolation.memory import READ_ONLY, U32, U64
from xenpy.devices.xenbus import Services
from xenpy.errors import Errno, XenError
from xenpy.memory import PAGE_SHIFT
from xenpy.pv.gnttab import GrantError
from xenpy.pv.xenstore.tree import DOM0

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from xenpy.devices.isolation.channel import Message
    from xenpy.memory import GuestMemory
    from xenpy.pv.gnttab import GrantMapping, GrantTable
    from xenpy.pv.gnttab.looking import Looking
    from xenpy.pv.gnttab.pins import Use


class Granter(Protocol):
    """A domain, as far as its pages go."""

    @property
    def memory(self) -> GuestMemory:
        """Return its memory."""

    @property
    def gnttab(self) -> GrantTable:
        """Return its grant table."""


class IsolationServices(Services, Protocol):
    """What isolated devices need of the host beyond what every backend does."""

    def domain(self, domid: int) -> Granter:
        """Return a domain. Raises XenError(ESRCH)."""

    def wire(self, port: int, wake: int, notify: int) -> None:
        """Let the kernel, where it can, pass events between a port of ours and two eventfds; under the lock."""


class GrantServer:
    """The grants of one guest that one queue's process has mapped, at most `limit` at a time; used under the host's lock.

    One that `looks` is for what `xenpy.pv.gnttab.looking` is for, and need not mark the guest's table.
    """

    def __init__(self, services: IsolationServices, domid: int, limit: int, *, looks: bool = False) -> None:
        self._services = services
        self._domid = domid
        self._limit = limit
        self._mapped: dict[int, list[Use]] = {}
        self._count = 0
        self._looks = looks
        self._looking: Looking | None = None
        self._guarded: dict[int, list[int]] = {}

    def answer(self, message: Message) -> tuple[Kind, bytes]:
        """Do what a message asks and return the answer's kind and payload. Raises ChannelError if it makes no sense."""
        match message.kind:
            case Kind.MAP if len(message.payload) % 4 == 1:
                return self._map(message.payload[1:], readonly=message.payload[:1] == READ_ONLY)
            case Kind.UNMAP if len(message.payload) % 4 == 0:
                return self._unmap(message.payload)
        raise ChannelError(f"{message.kind.name} with {len(message.payload)} bytes")

    def _map(self, payload: bytes, *, readonly: bool) -> tuple[Kind, bytes]:
        offsets = array(U64)
        mapped: list[Use] = []
        grefs = array(U32, payload)
        if self._count + len(grefs) > self._limit:
            raise ChannelError(f"{self._count} grants are mapped, and {len(grefs)} more are asked for")
        gref = 0
        try:
            granter = self._services.domain(self._domid)
            if self._looks and self._guard(granter, grefs, offsets, readonly=readonly):
                return Kind.MAPPED, offsets.tobytes()
            make_use, ram_fd = granter.gnttab.make_use, granter.memory.ram_fd
            for gref in grefs:
                use = make_use(gref, DOM0, readonly=readonly, mapping=True)
                mapped.append(use)
                frame = use.frame
                if frame.fd != ram_fd:
                    raise XenError(Errno.EINVAL, "a page that is not the guest's RAM")
                offsets.append(frame.offset)
        except (GrantError, XenError) as error:
            for use in mapped:
                use.release()
            return Kind.REFUSED, f"grant {gref}: {error}".encode()
        for gref, use in zip(grefs, mapped, strict=True):
            self._mapped.setdefault(gref, []).append(use)
        self._count += len(mapped)
        return Kind.MAPPED, offsets.tobytes()

    def _guard(self, granter: Granter, grefs: Sequence[int], offsets: array[int], *, readonly: bool) -> bool:
        """Look pages up and guard them, without a word in the table; tell whether that was possible."""
        table = granter.gnttab
        if self._looking is None:
            self._looking = table.looking()
        if readonly or self._looking is None or not table.is_plain:
            return False
        gfns = self._looking.gfns(grefs, readonly=readonly)
        if gfns is None or not table.guard(gfns):
            return False
        for gref, gfn in zip(grefs, gfns, strict=True):
            self._guarded.setdefault(gref, []).append(gfn)
            offsets.append(self._looking.offset(gfn))
        self._count += len(gfns)
        return True

    def _unguard(self, gfns: Iterable[int]) -> None:
        with suppress(XenError):  # the domain is gone
            self._services.domain(self._domid).gnttab.unguard(gfns)

    def _unmap(self, payload: bytes) -> tuple[Kind, bytes]:
        gfns: list[int] = []
        try:
            for gref in array(U32, payload):
                guarded, mapped = self._guarded.get(gref), self._mapped.get(gref)
                if guarded is not None:
                    gfns.append(guarded.pop())
                    if not guarded:
                        del self._guarded[gref]
                elif mapped is not None:
                    mapped.pop().release()
                    if not mapped:
                        del self._mapped[gref]
                else:
                    raise ChannelError(f"grant {gref} is not mapped")
                self._count -= 1
        finally:
            self._unguard(gfns)
        return Kind.UNMAPPED, b""

    def close(self) -> None:
        """Give everything back; when the process is no more."""
        for mappings in self._mapped.values():
            for mapping in mappings:
                mapping.release()
        self._unguard([gfn for gfns in self._guarded.values() for gfn in gfns])
        self._guarded.clear()
        self._mapped.clear()
        self._count = 0


def ram_offset(services: IsolationServices, domid: int, mapping: GrantMapping) -> int:
    """Return where in the guest's RAM a page is that it granted.

    Raises XenError: ESRCH, EINVAL for a page of the hypervisor's own, which no process is given.
    """
    memory = services.domain(domid).memory
    frame = memory.frame_of((mapping.hva - memory.hva(0)) >> PAGE_SHIFT)
    if frame is None or frame.fd != memory.ram_fd:
        raise XenError(Errno.EINVAL, "a page that is not the guest's RAM")
    return frame.offset
