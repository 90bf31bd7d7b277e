"""Constants of struct hvm_start_info, which a PVH guest finds in EBX.

Ref: xen/include/public/arch-x86/hvm/start_info.h
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

XEN_HVM_START_MAGIC_VALUE: Final = 0x336EC578
XEN_HVM_START_VERSION: Final = 1
"""The version that has a memory map."""


class XEN_HVM_MEMMAP_TYPE(IntEnum):
    """Types of memory-map entries; XENMEM_memory_map uses the same numbers."""

    RAM = 1
    RESERVED = 2
    ACPI = 3
    NVS = 4
    UNUSABLE = 5
    DISABLED = 6
    PMEM = 7
