"""Our side of event channels: ports of domain 0 whose events call Python."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from xenpy.abi.event_channel import EVTCHN_FIFO_NR_CHANNELS
from xenpy.errors import Errno, XenError
from xenpy.pv.evtchn.port import CLOSED
from xenpy.pv.evtchn.table import PortTable

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.pv.evtchn.port import Port


class _Handlers:
    """Delivery by calling a handler, one event at a time.

    An event that comes in while a handler runs waits until it returns, so that a handler may send, and be sent to,
    without recursion.
    """

    __slots__ = ("_queue", "_running", "handlers")

    def __init__(self) -> None:
        self.handlers: dict[int, Callable[[], None]] = {}
        self._queue: deque[Port] = deque()
        self._running = False

    @property
    def max_ports(self) -> int:
        """Return as many as any ABI has."""
        return EVTCHN_FIFO_NR_CHANNELS

    def set_pending(self, entry: Port) -> None:
        """Call the port's handler, now or when the running one returns; without a handler the event waits for one."""
        if entry.pending:
            return
        entry.pending = True
        if entry.number not in self.handlers:
            return
        self._queue.append(entry)
        if not self._running:
            self._run()

    def _run(self) -> None:
        self._running = True
        try:
            while self._queue:
                entry = self._queue.popleft()
                handler = self.handlers.get(entry.number)
                if entry.pending and handler is not None:
                    entry.pending = False
                    handler()
        finally:
            self._running = False

    def clear_pending(self, entry: Port) -> None:
        """Drop the event."""
        entry.pending = False

    def is_pending(self, entry: Port) -> bool:
        """Tell whether an event waits."""
        return entry.pending

    def is_masked(self, entry: Port) -> bool:
        """Tell whether the port has no handler."""
        return entry.number not in self.handlers

    def unmask(self, entry: Port) -> None:
        """Call the handler if an event waited for one."""
        if entry.pending:
            entry.pending = False
            self.set_pending(entry)

    def is_busy(self, number: int) -> bool:
        """Tell whether a handler was left on a closed port, which cannot be."""
        return number in self.handlers

    def set_priority(self, entry: Port, priority: int) -> None:
        """Raise XenError(ENOSYS): handlers run in the order of the events."""
        raise XenError(Errno.ENOSYS, f"port {entry.number}: priority {priority} of a handler")


class HostPorts(PortTable):
    """The ports of the domain that is ourselves, domain 0 as a rule.

    `lookup` finds a guest's table and raises XenError(ESRCH). An event on a port without a handler waits for one.
    """

    def __init__(self, domid: int, *, lookup: Callable[[int], PortTable]) -> None:
        self._handlers = _Handlers()
        super().__init__(domid, 1, self._handlers, lookup=lookup, max_ports=EVTCHN_FIFO_NR_CHANNELS)

    def set_handler(self, port: int, handler: Callable[[], None] | None) -> None:
        """Have events on a port call `handler`, or wait if it is None; an event that waited calls it at once.

        Handlers run under the host's lock in whichever thread sent the event, never within one another. What a handler
        raises reaches the sender, so it should raise nothing. Raises XenError(EINVAL) for a port that is not bound.
        """
        entry = self._entry(port)
        if entry.state == CLOSED:
            raise XenError(Errno.EINVAL, f"port {port} is closed")
        if handler is None:
            self._handlers.handlers.pop(port, None)
        else:
            self._handlers.handlers[port] = handler
            self._handlers.unmask(entry)

    def close(self, port: int) -> None:
        """Close a port and forget its handler. Raises XenError(EINVAL)."""
        super().close(port)
        self._handlers.handlers.pop(port, None)
