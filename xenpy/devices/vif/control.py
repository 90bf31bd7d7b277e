"""The control ring of a netfront, which says how its frames are spread over its queues. Served by the VMM, whoever moves the frames.

Ref: xen/include/public/io/netif.h, "Control messages"
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenpy.abi.netif import NETIF_CTRL_REQUEST, NETIF_CTRL_RESPONSE, NETIF_CTRL_SLOT_SIZE
from xenpy.devices.ring import BackRing
from xenpy.devices.vif.flow import Steering

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

    from xenpy.devices.vif.plan import Plan
    from xenpy.devices.xenbus import Services


class Control:
    """The steering of a frontend's frames, and the ring that changes it, if it has one. Everything is called under the host's lock.

    `stack` frees what is mapped and bound; `on_event` is called in a vCPU's thread. Raises GrantError, XenError.
    """

    def __init__(
        self, services: Services, domid: int, plan: Plan, stack: ExitStack, on_event: Callable[[], None]
    ) -> None:
        self._services = services
        self._domid = domid
        self._on_event = on_event
        self.steering = Steering(len(plan.queues), self._read_page)
        self._ring: BackRing | None = None
        self._port = 0
        if plan.control is not None:
            page = stack.enter_context(services.map_page(domid, plan.control.gref))
            self._ring = BackRing([page.view], NETIF_CTRL_SLOT_SIZE)
            stack.callback(self._ring.close)
            self._port = services.bind(domid, plan.control.port, on_event)
            stack.callback(services.unbind, self._port)

    def _read_page(self, gref: int, size: int) -> bytes:
        with self._services.map_page(self._domid, gref, readonly=True) as page:
            return bytes(page.view[:size])

    def serve(self) -> bool:
        """Answer what is in the ring now; tell whether there was anything. Raises FrontendError, GrantError."""
        if self._ring is None:
            return False
        requests = self._ring.take()
        for request in requests:
            ident, kind, *data = NETIF_CTRL_REQUEST.unpack(request)
            status, value = self.steering.control(kind, (data[0], data[1], data[2]))
            self._ring.put(NETIF_CTRL_RESPONSE.pack(ident, kind, status, value))
        if self._ring.push():
            self._services.notify(self._port)
        if self._ring.more():
            self._on_event()
        return bool(requests)
