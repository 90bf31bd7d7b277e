"""Instructions that a PV guest relies on the hypervisor to do: privileged ones, stores to page tables, loads from Xen's map, CPUID.

Nothing here knows KVM: a vCPU is a `Machine`, and what comes out of an instruction is an `Outcome`, or a `GuestFault` to deliver.
"""

from xenpy.pv.emulate.cpuid_prefix import emulate_forced
from xenpy.pv.emulate.lookup import MACH2PHYS, emulate_load
from xenpy.pv.emulate.machine import GuestFault, Machine, Outcome, Registers
from xenpy.pv.emulate.msr import MsrState, read_msr, write_msr
from xenpy.pv.emulate.ports import Ports
from xenpy.pv.emulate.privileged import emulate_privileged
from xenpy.pv.emulate.ptwr import Effect, Store, decode_store, emulate_store

__all__ = [
    "MACH2PHYS",
    "Effect",
    "GuestFault",
    "Machine",
    "MsrState",
    "Outcome",
    "Ports",
    "Registers",
    "Store",
    "decode_store",
    "emulate_forced",
    "emulate_load",
    "emulate_privileged",
    "emulate_store",
    "read_msr",
    "write_msr",
]
