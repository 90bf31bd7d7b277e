"""The account of a vCPU's thread."""

from __future__ import annotations

import threading

from xenpy.domain.runstate import ThreadRunstate
from xenpy.pv.time import SystemClock


def test_a_thread_that_has_ended_can_be_asked_for() -> None:
    """The clock may change, and a guest be looked at, when its vCPUs are no more."""
    account = ThreadRunstate(SystemClock())
    thread = threading.Thread(target=account.adopt_thread)
    thread.start()
    thread.join()
    account.clock_changes()
    _, _, times = account.read()
    assert sum(times) >= 0
