"""A KVM host with SVM and Xen support emulated by QEMU, for machines whose own /dev/kvm is missing or interprets ring 0."""

from xenpy.emulated.passthrough import run
from xenpy.emulated.session import EmulatedHost

__all__ = ["EmulatedHost", "run"]
