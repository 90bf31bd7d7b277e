"""Who wants to know what in-guest code does by itself: hypercalls that never leave the guest.

Ref: xenpy.shim.recording
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Final

from xenpy.shim import recording

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xenpy.domain.domain import Domain
    from xenpy.domain.vcpu import Vcpu
    from xenpy.shim.memory import Window

    Listener = Callable[["Vcpu", bytes], None]

IN_GUEST: Final = (
    "mmu_update", "mmuext_op", "multicall", "stack_switch", "set_segment_base", "xen_version.version", "vcpu_op.is_up", "iret",
    "update_va_mapping", "event_channel_op.send",
)  # fmt: skip
"""The hypercalls that in-guest code may carry out."""
_PATIENCE_S: Final = 1.0
"""How long to wait for a vCPU to leave in-guest code; one that does not run has nothing to tell."""
_AGAIN_S: Final = 0.02


class InGuest:
    """The in-guest code of a domain's vCPUs, whose `windows` it works in. Methods are called from any thread but the vCPUs'."""

    def __init__(self, domain: Domain, windows: Sequence[Window]) -> None:
        self._domain = domain
        self._windows = windows
        self._listeners: list[Listener] = []
        self._forbidden = 0
        self._finished = False

    def listen(self, listener: Listener) -> None:
        """Have a listener called, under the host's lock, with what each vCPU's in-guest code has recorded: `recording.parse` reads it."""
        with self._domain.host.lock:
            self._listeners.append(listener)
        self._apply()

    def ignore(self, listener: Listener) -> None:
        """Have a listener called no more, when it has heard of what was done so far."""
        self._apply()
        with self._domain.host.lock:
            self._listeners.remove(listener)
        self._apply()

    def forbid(self) -> None:
        """Have every hypercall leave the guest, until as many calls of `allow`."""
        with self._domain.host.lock:
            self._forbidden += 1
        self._apply()

    def allow(self) -> None:
        """Undo one `forbid`."""
        with self._domain.host.lock:
            self._forbidden -= 1
        self._apply()

    def collect(self, vcpu: Vcpu) -> None:
        """Tell the listeners what a vCPU's in-guest code has done. In the vCPU's thread, under the host's lock."""
        if not self._listeners:
            return
        data = recording.take(self._windows[vcpu.vcpu_id])
        if data:
            for listener in list(self._listeners):
                listener(vcpu, data)

    def finish(self) -> None:
        """Tell the listeners what is left of vCPUs that have ended, whose domain is about to go."""
        with self._domain.host.lock:
            for vcpu in self._domain.vcpus:
                if vcpu.thread is not None and not vcpu.thread.is_alive():
                    self.collect(vcpu)
            self._finished = True

    # -- switching ----------------------------------------------------------------------------------------------------

    def _apply(self) -> None:
        """Have each vCPU's window be set as it must be, out of in-guest code; wait for those that run."""
        domain = self._domain
        if self._finished:
            return
        late: dict[int, Vcpu] = {vcpu.vcpu_id: vcpu for vcpu in domain.vcpus}
        for vcpu in domain.vcpus:
            if vcpu.thread is not None and not vcpu.thread.is_alive():
                self._set(vcpu, late)
            else:
                vcpu.request(partial(self._set, vcpu, late))
        deadline = time.monotonic() + _PATIENCE_S
        while late and not domain.stands and domain.ending is None and time.monotonic() < deadline:
            for vcpu in list(late.values()):
                vcpu.kick()  # SCHEDOP_poll forgets a kick that came just before it
            time.sleep(_AGAIN_S)

    def _set(self, vcpu: Vcpu, late: dict[int, Vcpu]) -> None:
        window = self._windows[vcpu.vcpu_id]
        with self._domain.host.lock:
            self.collect(vcpu)
            if self._forbidden:
                recording.hand_on_all(window)
            elif self._listeners:
                recording.listen(window)
            else:
                recording.ignore(window)
            late.pop(vcpu.vcpu_id, None)
