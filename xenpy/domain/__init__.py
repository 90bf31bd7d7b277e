"""A domain: the one place where the hypervisor's state, its hypercalls, devices and KVM meet."""
