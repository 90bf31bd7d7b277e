"""vcpu_op commands. Ref: xen/include/public/vcpu.h, the last two from Xen 4.19's"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from xenpy.abi.op import Op

VCPUOP_initialise: Final = Op(0, "initialise")
VCPUOP_up: Final = Op(1, "up")
VCPUOP_down: Final = Op(2, "down")
VCPUOP_is_up: Final = Op(3, "is_up")
VCPUOP_get_runstate_info: Final = Op(4, "get_runstate_info", "vcpu_runstate_info", out=True)
VCPUOP_register_runstate_memory_area: Final = Op(
    5, "register_runstate_memory_area", "vcpu_register_runstate_memory_area"
)
VCPUOP_set_periodic_timer: Final = Op(6, "set_periodic_timer", "vcpu_set_periodic_timer")
VCPUOP_stop_periodic_timer: Final = Op(7, "stop_periodic_timer")
VCPUOP_set_singleshot_timer: Final = Op(8, "set_singleshot_timer", "vcpu_set_singleshot_timer")
VCPUOP_stop_singleshot_timer: Final = Op(9, "stop_singleshot_timer")
VCPUOP_register_vcpu_info: Final = Op(10, "register_vcpu_info", "vcpu_register_vcpu_info")
VCPUOP_send_nmi: Final = Op(11, "send_nmi")
VCPUOP_get_physid: Final = Op(12, "get_physid", "vcpu_get_physid", out=True)
VCPUOP_register_vcpu_time_memory_area: Final = Op(
    13, "register_vcpu_time_memory_area", "vcpu_register_time_memory_area"
)
VCPUOP_register_runstate_phys_area: Final = Op(14, "register_runstate_phys_area", "vcpu_register_runstate_memory_area")
VCPUOP_register_vcpu_time_phys_area: Final = Op(15, "register_vcpu_time_phys_area", "vcpu_register_time_memory_area")

VCPU_SSHOTTMR_future: Final = 1
XEN_RUNSTATE_UPDATE: Final = 1 << 63


class RUNSTATE(IntEnum):
    """What a vCPU is doing."""

    running = 0
    runnable = 1
    blocked = 2
    offline = 3


VCPU_HVM_MODE_32B: Final = 0
VCPU_HVM_MODE_64B: Final = 1
