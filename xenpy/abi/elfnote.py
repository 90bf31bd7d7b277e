"""Notes by which a kernel image tells how it wants to be started.

Ref: xen/include/public/elfnote.h; PHYS32_RELOC and its defaults: the same header since Xen 4.20
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class XEN_ELFNOTE(IntEnum):
    """Note types; the note's name is "Xen"."""

    INFO = 0
    ENTRY = 1
    HYPERCALL_PAGE = 2
    VIRT_BASE = 3
    PADDR_OFFSET = 4
    XEN_VERSION = 5
    GUEST_OS = 6
    GUEST_VERSION = 7
    LOADER = 8
    PAE_MODE = 9
    FEATURES = 10
    BSD_SYMTAB = 11
    HV_START_LOW = 12
    L1_MFN_VALID = 13
    SUSPEND_CANCEL = 14
    INIT_P2M = 15
    MOD_START_PFN = 16
    SUPPORTED_FEATURES = 17
    PHYS32_ENTRY = 18
    PHYS32_RELOC = 19


NOTE_NAME: Final = b"Xen"
LEGACY_SECTION: Final = "__xen_guest"
"""The section whose NAME=VALUE string old kernels have in place of notes; each name stands in elfnote.h as LEGACY."""

PHYS32_RELOC_ALIGN: Final = 0x200000
PHYS32_RELOC_MIN: Final = 0
PHYS32_RELOC_MAX: Final = 0xFFFFFFFF

FEATURE_NAMES: Final = (
    "writable_page_tables",
    "writable_descriptor_tables",
    "auto_translated_physmap",
    "supervisor_mode_kernel",
    "pae_pgdir_above_4gb",
    "mmu_pt_update_preserve_ad",
    "highmem_assist",
    "gnttab_map_avail_bits",
    "hvm_callback_vector",
    "hvm_safe_pvclock",
    "hvm_pirqs",
    "dom0",
    "grant_map_identity",
    "memory_op_vnode_supported",
    "ARM_SMCCC_supported",
    "linux_rsdp_unrestricted",
)
"""Names in a FEATURES note, at the index of their bit. Ref: xen/include/public/features.h"""
