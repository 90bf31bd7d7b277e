"""Constants of struct start_info and of the address space that a 64-bit PV guest starts in.

Ref: xen/include/public/xen.h, arch-x86/xen-x86_64.h
"""

from __future__ import annotations

from typing import Final

START_MAGIC: Final = b"xen-3.0-x86_64"
"""What start_info.magic says, as Xen's toolstack has it since 3.0; "xen-<version>-<platform>"."""
MAX_GUEST_CMDLINE: Final = 1024
"""Bytes of start_info.cmd_line, its NUL included."""

HYPERVISOR_VIRT_START: Final = 0xFFFF_8000_0000_0000
HYPERVISOR_VIRT_END: Final = 0xFFFF_8800_0000_0000

INVALID_ENTRY: Final = (1 << 64) - 1
"""A P2M or M2P entry of a page that is not there."""

# start_info.flags
SIF_PRIVILEGED: Final = 1 << 0
SIF_INITDOMAIN: Final = 1 << 1
SIF_MULTIBOOT_MOD: Final = 1 << 2
SIF_MOD_START_PFN: Final = 1 << 3
SIF_VIRT_P2M_4TOOLS: Final = 1 << 4
