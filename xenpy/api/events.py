"""An event channel whose other end is the test."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenpy.pv.xenstore.tree import DOM0

if TYPE_CHECKING:
    from xenpy.api.progress import Progress
    from xenpy.domain.domain import Domain
    from xenpy.host import Host


class EventChannel:
    """An interdomain event channel between a guest and dom0, which is us.

    With `port` it binds to a port that the guest has offered to dom0 (EVTCHNOP_alloc_unbound); without, it makes one in the guest.
    Raises XenError(EINVAL) if the guest's port is not on offer.
    """

    def __init__(self, host: Host, domain: Domain, progress: Progress, port: int | None = None) -> None:
        self._host = host
        self._progress = progress
        self.events = 0
        """Events from the guest so far; several may have merged into one."""
        self._seen = 0
        with host.lock:
            self.port = domain.evtchn.alloc_unbound(DOM0) if port is None else port
            """The guest's port."""
            self.local_port = host.bind(domain.domid, self.port, self._on_event)
            self.events = 0  # binding makes one pending that nobody sent
        self._open = True

    def _on_event(self) -> None:
        self.events += 1
        self._progress.notify()

    def notify(self) -> None:
        """Send an event to the guest; nothing happens if it has closed its end."""
        self._host.notify(self.local_port)

    def wait(self, timeout: float | None = None) -> None:
        """Wait for an event that no earlier wait has seen; `timeout` in seconds. Raises Timeout, GuestEnded."""
        self._progress.wait(lambda: self.events > self._seen or None, timeout, f"event on port {self.port}")
        self._seen = self.events

    def close(self) -> None:
        """Close our end; idempotent."""
        with self._host.lock:
            if self._open:
                self._open = False
                self._host.unbind(self.local_port)
