"""Constants of struct start_info and of the address space that a 64-bit PV guest starts in.

Ref: xen/include/public/xen.h, arch-x86/xen-x86_64.h
"""

from __future__ import annotations

from enum import IntFlag
from typing import Final

START_MAGIC: Final = b"xen-3.0-x86_64"
"""What start_info.magic says, as Xen's toolstack has it since 3.0; "xen-<version>-<platform>"."""
MAX_GUEST_CMDLINE: Final = 1024
"""Bytes of start_info.cmd_line, its NUL included."""

HYPERVISOR_VIRT_START: Final = 0xFFFF_8000_0000_0000
HYPERVISOR_VIRT_END: Final = 0xFFFF_8800_0000_0000

INVALID_ENTRY: Final = (1 << 64) - 1
"""A P2M or M2P entry of a page that is not there."""


class SIF(IntFlag):
    """start_info.flags."""

    PRIVILEGED = 1 << 0
    INITDOMAIN = 1 << 1
    MULTIBOOT_MOD = 1 << 2
    MOD_START_PFN = 1 << 3
    VIRT_P2M_4TOOLS = 1 << 4
