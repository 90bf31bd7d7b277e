"""A guest's memory in a device's process: pages by their offset, and grants looked up, or asked for by reference."""

from __future__ import annotations

import mmap
import os
import threading
from array import array
from typing import TYPE_CHECKING, Final, NamedTuple

from xenpy.devices.isolation.channel import Kind
from xenpy.errors import FrontendError
from xenpy.memory import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xenpy.devices.grants import Page
    from xenpy.devices.isolation.channel import Channel
    from xenpy.pv.gnttab.looking import Looking

U32: Final = "I"
U64: Final = "Q"
READ_ONLY: Final = b"\1"
READ_WRITE: Final = b"\0"


class VmmGone(Exception):
    """Nobody is left to answer us."""


class RemotePage(NamedTuple):
    """A granted page."""

    gref: int
    view: memoryview
    held: bool
    """Whether the VMM has mapped it for us."""

    def close(self) -> None:
        """Do nothing: the view is of memory that stays mapped."""


class Ram:
    """The guest's RAM, all of it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._view = self._map()

    def _map(self) -> memoryview:
        return memoryview(mmap.mmap(self._fd, os.fstat(self._fd).st_size))

    def page(self, offset: int) -> memoryview:
        """Return a live view of a page."""
        return self.all_up_to(offset)[offset : offset + PAGE_SIZE]

    def all_up_to(self, offset: int) -> memoryview:
        """Return a live view of everything, at least as far as the page at an offset."""
        if offset >= len(self._view):  # the guest has got more since
            self._view = self._map()
        return self._view


class RemoteGrants:
    """The grants of a guest that another process holds, for one queue: one exchange of messages for as many as are asked for at once."""

    def __init__(self, channel: Channel, ram: Ram) -> None:
        self.lock = threading.Lock()  # nobody else wants it, but it costs less than a nullcontext
        self._channel = channel
        self._ram = ram
        self.looking: Looking | None = None
        """What finds most of the pages without asking."""

    def map(self, grefs: Sequence[int], *, readonly: bool) -> Sequence[RemotePage]:
        """Map pages. Raises FrontendError, with none of them mapped, if one was not granted."""
        offsets: Sequence[int] | None = None
        if self.looking is not None:
            offsets = self.looking.offsets(grefs, readonly=readonly)
        held = offsets is None
        if offsets is None:
            flag = READ_ONLY if readonly else READ_WRITE
            offsets = array(U64, self._ask(Kind.MAP, flag + array(U32, grefs).tobytes()))
        ram = self._ram.all_up_to(max(offsets, default=0))
        if readonly:
            ram = ram.toreadonly()
        return [
            RemotePage(gref, ram[offset : offset + PAGE_SIZE], held)
            for gref, offset in zip(grefs, offsets, strict=True)
        ]

    def unmap(self, pages: Sequence[Page]) -> None:
        """Let the guest have pages back; when this returns it has them."""
        held = [page.gref for page in pages if not isinstance(page, RemotePage) or page.held]
        if held:
            self._ask(Kind.UNMAP, array(U32, held).tobytes())

    def _ask(self, kind: Kind, payload: bytes) -> bytes:
        try:
            self._channel.send(kind, payload)
        except OSError:
            raise VmmGone from None
        answer = self._channel.receive()
        if answer is None:
            raise VmmGone
        if answer.kind is Kind.REFUSED:
            raise FrontendError(answer.payload.decode())
        return answer.payload
