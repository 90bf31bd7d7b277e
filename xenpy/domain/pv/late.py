"""Events of the guest's that may reach us a little late: those of its console, a kernel's every sixteen bytes of output.

While the vCPU is sure to stop soon, in-guest code only notes that the guest has sent one (State.SENT); whoever has the vCPU out of the
guest next, for whatever reason, sends it. A vCPU that blocks, yields, or shuts the domain down stops for that.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from xenpy.errors import XenError
from xenpy.shim.layout import State

if TYPE_CHECKING:
    from xenpy.domain.pv.domain import PvDomain

LATEST_NS: Final = 10_000_000
"""How late an event may be, in nanoseconds."""


class LateEvents:
    """Those of one vCPU, whose `words` are the State's. Methods belong to its thread."""

    def __init__(self, domain: PvDomain, words: memoryview[int]) -> None:
        self._domain = domain
        self._words = words
        self.expected = False
        """Whether the guest has just sent an event, and is likely to send more."""

    def allow(self, kick_at: int) -> bool:
        """Have the guest that is about to be entered send late events, if a kick comes soon: at the host's monotonic time `kick_at`, in ns.

        Return False if they are allowed only with a kick, not yet asked for, in LATEST_NS: worth it where more events are expected.
        """
        domain = self._domain
        port = domain.late_port
        soon = 0 < kick_at - time.monotonic_ns() <= LATEST_NS
        may = port and (soon or self.expected) and domain.evtchn.is_connected(port)
        self._words[State.LATE_PORT] = port if may else 0
        self.expected = False
        return soon or not may

    def send(self) -> None:
        """Send what the guest has sent meanwhile."""
        if not self._words[State.SENT]:
            return
        self._words[State.SENT] = 0
        domain = self._domain
        with domain.host.lock:
            try:
                domain.evtchn.send(domain.late_port)
            except XenError:
                return  # another vCPU has closed the port since: the event came before that, to nobody
