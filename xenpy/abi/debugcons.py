"""The port of the emergency console.

Ref: xen/include/public/arch-x86/xen.h, XEN_HVM_DEBUGCONS_IOPORT
"""

from __future__ import annotations

from typing import Final

DEBUG_PORT: Final = 0xE9
"""Bytes written here go to the emergency console."""
