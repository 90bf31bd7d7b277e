"""The hypervisor's state: event channels, grants, xenstore, time. It knows neither KVM nor hypercall numbers."""
