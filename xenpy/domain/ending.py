"""How a domain ended."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class End(Enum):
    """The kinds of ending: the guest's own shutdown reasons, then ours."""

    POWEROFF = "power-off"
    REBOOT = "reboot"
    SUSPEND = "suspend"
    CRASH = "crash"
    WATCHDOG = "watchdog"
    SOFT_RESET = "soft reset"
    UNSUPPORTED = "unsupported"
    """KVM on this host cannot run the guest."""
    DESTROYED = "destroyed"
    """Somebody outside ended it."""
    INTERNAL = "internal error"
    """A bug of ours; the guest is lost, nothing else."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a domain ended, and in a few words why; `detail` is empty when the kind says it all."""

    kind: End
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind.value}: {self.detail}" if self.detail else self.kind.value


SHUTDOWN_ENDS = (End.POWEROFF, End.REBOOT, End.SUSPEND, End.CRASH, End.WATCHDOG, End.SOFT_RESET)
"""By SHUTDOWN_* number. Ref: xen/include/public/sched.h"""
