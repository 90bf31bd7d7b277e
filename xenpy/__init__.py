"""Xen guests without a Xen host: a hypervisor in Python on Linux KVM."""

__version__ = "0.1.0"
