"""The /dev/kvm file: what this host can do."""

from __future__ import annotations

import errno
import os
from typing import Any, Final

from xenpy import libc
from xenpy.abi import _kvm_ioctl as request
from xenpy.abi._kvm import ffi
from xenpy.errors import HostError
from xenpy.kvm.constants import KVM_API_VERSION, Cap

DEVICE: Final = "/dev/kvm"


def pointer(value: Any) -> int:
    """Return the address of a cffi structure, as ioctls take it."""
    return int(ffi.cast("uintptr_t", value))


def checked_ioctl(fd: int, number: int, arg: int, what: str) -> int:
    """Call ioctl and return its result. Raises OSError with `what` in its message."""
    result = libc.ioctl(fd, number, arg)
    if result < 0:
        raise OSError(-result, f"KVM: {what}: {os.strerror(-result)}")
    return result


class Kvm:
    """An open /dev/kvm.

    Raises HostError, with the remedy, when it cannot be opened or speaks another API.
    """

    def __init__(self, path: str = DEVICE) -> None:
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(_remedy(path, error)) from None
        version = libc.ioctl(self.fd, request.KVM_GET_API_VERSION, 0)
        if version != KVM_API_VERSION:
            self.close()
            raise HostError(f"{path}: not a KVM device of API version {KVM_API_VERSION} (it answered {version})")
        self._caps: dict[Cap, int] = {}
        self.run_size = checked_ioctl(self.fd, request.KVM_GET_VCPU_MMAP_SIZE, 0, "size of kvm_run")

    def check(self, cap: Cap) -> int:
        """Return what KVM_CHECK_EXTENSION tells of a capability; 0 means it is not there."""
        value = self._caps.get(cap)
        if value is None:
            value = self._caps[cap] = max(0, libc.ioctl(self.fd, request.KVM_CHECK_EXTENSION, cap))
        return value

    def supported_cpuid(self) -> list[tuple[int, int, int, tuple[int, int, int, int]]]:
        """Return the CPUID entries KVM can give a guest: (leaf, subleaf, flags, (eax, ebx, ecx, edx))."""
        table = ffi.new("struct kvm_cpuid2 *")
        table.nent = len(table.entries)
        checked_ioctl(self.fd, request.KVM_GET_SUPPORTED_CPUID, pointer(table), "supported CPUID")
        return [
            (entry.function, entry.index, entry.flags, (entry.eax, entry.ebx, entry.ecx, entry.edx))
            for entry in table.entries[0 : table.nent]
        ]

    def create_vm(self) -> int:
        """Create a VM and return its file descriptor. Raises OSError."""
        while True:
            fd = libc.ioctl(self.fd, request.KVM_CREATE_VM, 0)
            if fd != -errno.EINTR:
                break
        if fd < 0:
            raise OSError(-fd, f"KVM: create a VM: {os.strerror(-fd)}")
        return fd

    def close(self) -> None:
        """Close the device; VMs made from it live on."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _remedy(path: str, error: OSError) -> str:
    """Explain why the device cannot be opened, and what to do about it."""
    if error.errno == errno.ENOENT:
        return (
            f"{path} does not exist: load the kvm module (modprobe kvm_intel or kvm_amd), enable virtualisation in the firmware, "
            "or run inside QEMU's emulated host with --host emulated"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            f"{path}: permission denied: join its group (sudo usermod -aG kvm $USER, then log in again) or run as root"
        )
    return f"{path}: {error.strerror}"
