"""sched_op commands. Ref: xen/include/public/sched.h"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from xenpy.abi.op import Op

SCHEDOP_yield: Final = Op(0, "yield")
SCHEDOP_block: Final = Op(1, "block")
SCHEDOP_shutdown: Final = Op(2, "shutdown", "sched_shutdown")
SCHEDOP_poll: Final = Op(3, "poll", "sched_poll")
SCHEDOP_remote_shutdown: Final = Op(4, "remote_shutdown", "sched_remote_shutdown")
SCHEDOP_shutdown_code: Final = Op(5, "shutdown_code", "sched_shutdown")
SCHEDOP_watchdog: Final = Op(6, "watchdog", "sched_watchdog")
SCHEDOP_pin_override: Final = Op(7, "pin_override", "sched_pin_override")

MAX_POLL_PORTS: Final = 128


class SHUTDOWN(IntEnum):
    """Why a domain ended."""

    poweroff = 0
    reboot = 1
    suspend = 2
    crash = 3
    watchdog = 4
    soft_reset = 5
