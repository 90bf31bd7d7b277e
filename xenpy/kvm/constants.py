"""KVM's numbers. Ref: linux/kvm.h, asm/kvm.h, Documentation/virt/kvm/api.rst"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final


class Cap(IntEnum):
    """Extensions that KVM_CHECK_EXTENSION answers for and KVM_ENABLE_CAP turns on."""

    NR_MEMSLOTS = 10
    SYNC_MMU = 16
    IRQFD = 32
    IOEVENTFD = 36
    XEN_HVM = 38
    ADJUST_CLOCK = 39
    VCPU_EVENTS = 41
    XCRS = 56
    TSC_CONTROL = 60
    GET_TSC_KHZ = 61
    MAX_VCPUS = 66
    SYNC_REGS = 74
    SIGNAL_MSI = 77
    READONLY_MEM = 81
    SPLIT_IRQCHIP = 121
    MAX_VCPU_ID = 128
    IMMEDIATE_EXIT = 136
    X86_DISABLE_EXITS = 143
    X86_USER_SPACE_MSR = 188
    X86_MSR_FILTER = 189
    EXIT_HYPERCALL = 201
    EXIT_ON_EMULATION_FAILURE = 204
    DISABLE_QUIRKS2 = 213


class Exit(IntEnum):
    """Why KVM_RUN came back."""

    UNKNOWN = 0
    EXCEPTION = 1
    IO = 2
    HYPERCALL = 3
    DEBUG = 4
    HLT = 5
    MMIO = 6
    IRQ_WINDOW_OPEN = 7
    SHUTDOWN = 8
    FAIL_ENTRY = 9
    INTR = 10
    SET_TPR = 11
    TPR_ACCESS = 12
    NMI = 16
    INTERNAL_ERROR = 17
    SYSTEM_EVENT = 24
    IOAPIC_EOI = 26
    HYPERV = 27
    X86_RDMSR = 29
    X86_WRMSR = 30
    X86_BUS_LOCK = 33
    XEN = 34
    NOTIFY = 37
    MEMORY_FAULT = 39


class InternalError(IntEnum):
    """Suberrors of Exit.INTERNAL_ERROR."""

    EMULATION = 1
    SIMUL_EX = 2
    DELIVERY_EV = 3
    UNEXPECTED_EXIT_REASON = 4


class Sync(IntFlag):
    """Register classes of kvm_valid_regs and kvm_dirty_regs."""

    REGS = 1
    SREGS = 2
    EVENTS = 4


class MpState(IntEnum):
    """What a vCPU with an in-kernel LAPIC is doing."""

    RUNNABLE = 0
    UNINITIALIZED = 1
    INIT_RECEIVED = 2
    HALTED = 3
    SIPI_RECEIVED = 4


class XenConfig(IntFlag):
    """What KVM_CAP_XEN_HVM offers, and flags of KVM_XEN_HVM_CONFIG."""

    HYPERCALL_MSR = 1 << 0
    INTERCEPT_HCALL = 1 << 1
    SHARED_INFO = 1 << 2
    RUNSTATE = 1 << 3
    EVTCHN_2LEVEL = 1 << 4
    EVTCHN_SEND = 1 << 5
    RUNSTATE_UPDATE_FLAG = 1 << 6
    PVCLOCK_TSC_UNSTABLE = 1 << 7
    SHARED_INFO_HVA = 1 << 8


class XenAttr(IntEnum):
    """Types of KVM_XEN_HVM_SET_ATTR."""

    LONG_MODE = 0
    SHARED_INFO = 1
    UPCALL_VECTOR = 2
    EVTCHN = 3
    XEN_VERSION = 4
    RUNSTATE_UPDATE_FLAG = 5


class XenVcpuAttr(IntEnum):
    """Types of KVM_XEN_VCPU_SET_ATTR."""

    VCPU_INFO = 0
    VCPU_TIME_INFO = 1
    RUNSTATE_ADDR = 2
    RUNSTATE_CURRENT = 3
    RUNSTATE_DATA = 4
    RUNSTATE_ADJUST = 5
    VCPU_ID = 6
    TIMER = 7
    UPCALL_VECTOR = 8


KVM_XEN_EVTCHN_DEASSIGN: Final = 1 << 0
KVM_IRQ_ROUTING_XEN_EVTCHN: Final = 5
KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL: Final = 0xFFFF_FFFF
KVM_IRQFD_FLAG_DEASSIGN: Final = 1 << 0
KVM_API_VERSION: Final = 12
KVM_MEM_READONLY: Final = 1 << 1
KVM_EXIT_IO_IN: Final = 0
KVM_EXIT_IO_OUT: Final = 1
KVM_EXIT_XEN_HCALL: Final = 1
KVM_INVALID_GPA: Final = (1 << 64) - 1
KVM_XEN_INVALID_GFN: Final = (1 << 64) - 1
KVM_CPUID_FLAG_SIGNIFCANT_INDEX: Final = 1
KVM_MSR_FILTER_READ: Final = 1
KVM_MSR_FILTER_WRITE: Final = 2
MSR_EXIT_REASON_INVAL: Final = 1
MSR_EXIT_REASON_UNKNOWN: Final = 2
MSR_EXIT_REASON_FILTER: Final = 4
KVM_GUESTDBG_ENABLE: Final = 1
KVM_GUESTDBG_SINGLESTEP: Final = 2
KVM_GUESTDBG_INJECT_BP: Final = 0x80000
KVM_GUESTDBG_USE_SW_BP: Final = 0x10000
KVM_GUESTDBG_USE_HW_BP: Final = 0x20000
MSR_KVM_SYSTEM_TIME_NEW: Final = 0x4B564D01
"""Where KVM keeps a vCPU's pvclock current. Ref: asm/kvm_para.h"""
