"""HVM parameters: a small table by which toolstack, hypervisor and guest tell each other where things are.

Ref: xen/include/public/hvm/params.h; the access rules are those of Xen's documentation of each parameter
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from xenpy.errors import Errno, XenError


class HVM_PARAM(IntEnum):
    """Parameter indices."""

    CALLBACK_IRQ = 0
    STORE_PFN = 1
    STORE_EVTCHN = 2
    PAE_ENABLED = 4
    IOREQ_PFN = 5
    BUFIOREQ_PFN = 6
    VIRIDIAN = 9
    TIMER_MODE = 10
    HPET_ENABLED = 11
    IDENT_PT = 12
    DM_DOMAIN = 13
    ACPI_S_STATE = 14
    VM86_TSS = 15
    VPT_ALIGN = 16
    CONSOLE_PFN = 17
    CONSOLE_EVTCHN = 18
    ACPI_IOPORTS_LOCATION = 19
    PAGING_RING_PFN = 27
    MONITOR_RING_PFN = 28
    SHARING_RING_PFN = 29
    TRIPLE_FAULT_REASON = 31
    IOREQ_SERVER_PFN = 32
    NR_IOREQ_SERVER_PAGES = 33
    VM_GENERATION_ID_ADDR = 34
    ALTP2M = 35
    X87_FIP_WIDTH = 36
    VM86_TSS_SIZED = 37
    MCA_CAP = 38


HVM_NR_PARAMS: Final = 39

CALLBACK_TYPE_SHIFT: Final = 56
CALLBACK_TYPE_GSI: Final = 0
CALLBACK_TYPE_PCI_INTX: Final = 1
CALLBACK_TYPE_VECTOR: Final = 2

_DEPRECATED: Final = frozenset((4, 13, 20, 21, 22, 23, 24, 25, 26, 30))
_GUEST_MAY_GET: Final = frozenset(
    (
        HVM_PARAM.CALLBACK_IRQ, HVM_PARAM.STORE_PFN, HVM_PARAM.STORE_EVTCHN, HVM_PARAM.CONSOLE_PFN, HVM_PARAM.CONSOLE_EVTCHN,
        HVM_PARAM.VM86_TSS, HVM_PARAM.VM86_TSS_SIZED, HVM_PARAM.ACPI_IOPORTS_LOCATION, HVM_PARAM.VM_GENERATION_ID_ADDR,
        HVM_PARAM.ALTP2M, HVM_PARAM.X87_FIP_WIDTH,
    )
)  # fmt: skip
_GUEST_MAY_SET: Final = frozenset(
    (
        HVM_PARAM.CALLBACK_IRQ, HVM_PARAM.STORE_EVTCHN, HVM_PARAM.CONSOLE_EVTCHN, HVM_PARAM.VM86_TSS,
        HVM_PARAM.VM86_TSS_SIZED, HVM_PARAM.ACPI_IOPORTS_LOCATION, HVM_PARAM.VM_GENERATION_ID_ADDR, HVM_PARAM.X87_FIP_WIDTH,
    )
)  # fmt: skip
# Values that stay as first set, once they are not zero.
_SET_ONCE: Final = frozenset(
    (HVM_PARAM.STORE_EVTCHN, HVM_PARAM.CONSOLE_EVTCHN, HVM_PARAM.VM_GENERATION_ID_ADDR, HVM_PARAM.ACPI_IOPORTS_LOCATION)
)


class HvmParams:
    """The parameters of one domain. The toolstack reads and writes `values` directly; the guest goes through get and set."""

    def __init__(self) -> None:
        self.values: dict[int, int] = {HVM_PARAM.X87_FIP_WIDTH: 8}

    def _check(self, index: int, allowed: frozenset[int]) -> None:
        if index >= HVM_NR_PARAMS or index in _DEPRECATED:
            raise XenError(Errno.EINVAL, f"HVM parameter {index}")
        if index not in allowed:
            raise XenError(Errno.EPERM, f"HVM parameter {index} is not the guest's")

    def get(self, index: int) -> int:
        """Return a parameter to the guest. Raises XenError: EINVAL, EPERM."""
        self._check(index, _GUEST_MAY_GET)
        return self.values.get(index, 0)

    def set(self, index: int, value: int) -> None:
        """Set a parameter for the guest. Raises XenError: EINVAL, EPERM, EEXIST (set to another value before)."""
        self._check(index, _GUEST_MAY_SET)
        old = self.values.get(index, 0)
        if index in _SET_ONCE and old and old != value:
            raise XenError(Errno.EEXIST, f"HVM parameter {index} is set already")
        if index == HVM_PARAM.X87_FIP_WIDTH and value not in (0, 4, 8):
            raise XenError(Errno.EINVAL, f"x87 FIP width {value}")
        self.values[index] = value
