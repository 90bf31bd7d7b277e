"""/dev/kvm, typed and thin. This package knows no Xen."""
