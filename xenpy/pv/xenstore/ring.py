"""A guest's xenstore ring: the page that it shares with the store.

Everything in the page is the guest's to change at any time: indices are read once and checked before use.

Ref: docs/misc/xenstore-ring.txt, xen/include/public/io/xs_wire.h `struct xenstore_domain_interface`
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from xenpy.abi.xs_wire import (
    XENSTORE_RING_SIZE,
    RingConnection,
    RingError,
    RingOffset,
    ServerFeature,
)
from xenpy.pv.xenstore.saved import load_connection, save_connection
from xenpy.pv.xenstore.wire import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.pv.xenstore.saved import ConnectionState
    from xenpy.pv.xenstore.server import Xenstore

log = logging.getLogger(__name__)

PAGE_SIZE = 4096
FEATURES = ServerFeature.RECONNECTION | ServerFeature.ERROR | ServerFeature.WATCH_DEPTH

_WORD = 4
_REQ_CONS = RingOffset.req_cons // _WORD
_REQ_PROD = RingOffset.req_prod // _WORD
_RSP_CONS = RingOffset.rsp_cons // _WORD
_RSP_PROD = RingOffset.rsp_prod // _WORD
_FEATURES = RingOffset.server_features // _WORD
_CONNECTION = RingOffset.connection // _WORD
_ERROR = RingOffset.error // _WORD
_MASK = XENSTORE_RING_SIZE - 1
_INDEX_MASK = 0xFFFFFFFF


class Ring:
    """The store's end of one guest's page, emptied here; call `on_event` when the guest sends its event channel.

    `page` is a writable view of 4096 bytes of the guest's memory, `notify` sends the event channel to the guest; it is
    called with no lock held. With `resume` both go on where another ring's connection was, whose page this one has.
    """

    def __init__(
        self,
        store: Xenstore,
        domid: int,
        page: memoryview,
        notify: Callable[[], None],
        *,
        features: ServerFeature = FEATURES,
        resume: ConnectionState | None = None,
    ) -> None:
        if page.nbytes != PAGE_SIZE or page.readonly:
            raise ValueError(f"a ring needs a writable page of {PAGE_SIZE} bytes")
        self._bytes = page.cast("B")
        self._words = self._bytes.cast("I")  # a word in one load or store, where struct's "<I" goes byte by byte
        self._notify = notify
        self._store = store
        self._warned = False
        self.broken = False
        self.connection = store.connect(domid, on_output=self._on_output)
        if resume is None:
            self._words[_FEATURES] = features
            self._empty()
        else:
            self.broken = resume.broken
            with store.guard:
                load_connection(self.connection, resume)

    def state(self) -> ConnectionState:
        """Return the connection as plain data; the ring itself is the guest's memory. Under the store's lock."""
        return save_connection(self.connection, broken=self.broken)

    def on_event(self) -> None:
        """Work on what the guest has put into the ring; never raises for anything found there."""
        with self._store.guard:
            moved = self._work()
        if moved:
            self._notify()

    def _on_output(self) -> None:
        with self._store.guard:
            moved = not self.broken and not self.connection.closed and (self._send() or self.broken)
        if moved:
            self._notify()

    def detach(self) -> None:
        """Leave the page alone from now on and let go of it; idempotent."""
        with self._store.guard:
            self.connection.close()
            self._words.release()
            self._bytes.release()

    def _work(self) -> bool:
        """Move requests in and replies out; return whether the guest has to be told."""
        connection, words = self.connection, self._words
        if connection.closed:
            return False
        if words[_CONNECTION] == RingConnection.XENSTORE_RECONNECT:
            self._reconnect()
            return True
        if self.broken:
            return False
        # The guest sends an event for whatever it adds later, so one look at its producer is enough and bounds this.
        cons = words[_REQ_CONS]
        waiting = (words[_REQ_PROD] - cons) & _INDEX_MASK
        if waiting > XENSTORE_RING_SIZE:
            return self._fail(RingError.XENSTORE_ERROR_RINGIDX)
        moved = False
        while True:
            try:
                if waiting and not connection.stalled:
                    data = self._read(cons, waiting)
                    words[_REQ_CONS] = (cons + waiting) & _INDEX_MASK
                    waiting, moved = 0, True
                    connection.feed(data)
                else:
                    connection.process()
            except ProtocolError:
                return self._fail(RingError.XENSTORE_ERROR_PROTO)
            if not self._send():
                return moved or self.broken
            moved = True

    def _read(self, cons: int, length: int) -> bytes:
        start = cons & _MASK
        ring = self._bytes[RingOffset.req : RingOffset.req + XENSTORE_RING_SIZE]
        first = bytes(ring[start : start + length])
        return first + bytes(ring[: length - len(first)])

    def _send(self) -> bool:
        """Move queued output into the ring as far as there is room; return whether anything moved."""
        if not self.connection.output_size:
            return False
        prod = self._words[_RSP_PROD]
        used = (prod - self._words[_RSP_CONS]) & _INDEX_MASK
        if used > XENSTORE_RING_SIZE:
            self._fail(RingError.XENSTORE_ERROR_RINGIDX)
            return False
        data = self.connection.take_output(XENSTORE_RING_SIZE - used)
        if not data:
            return False
        start = RingOffset.rsp + (prod & _MASK)
        first = data[: RingOffset.rsp + XENSTORE_RING_SIZE - start]
        self._bytes[start : start + len(first)] = first
        rest = len(data) - len(first)
        self._bytes[RingOffset.rsp : RingOffset.rsp + rest] = data[len(first) :]
        self._words[_RSP_PROD] = (prod + len(data)) & _INDEX_MASK
        return True

    def _fail(self, error: RingError) -> bool:
        """Stop talking to the guest until it reconnects."""
        # Once: a guest may reconnect and fail as often as it likes.
        level, self._warned = logging.DEBUG if self._warned else logging.WARNING, True
        log.log(level, "dom%d: xenstore ring stopped: %s", self.connection.caller.domid, error.name)
        self.broken = True
        self.connection.restart()
        self._words[_ERROR] = error
        return True

    def _reconnect(self) -> None:
        self.connection.restart()
        self.broken = False
        self._empty()
        self._words[_CONNECTION] = RingConnection.XENSTORE_CONNECTED

    def _empty(self) -> None:
        for index in (_REQ_CONS, _REQ_PROD, _RSP_CONS, _RSP_PROD):
            self._words[index] = 0
        self._words[_ERROR] = RingError.XENSTORE_ERROR_NONE
