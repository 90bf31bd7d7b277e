"""The few libc calls that Python's library does not offer, through cffi's ABI mode: no compiler, no extension module."""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import Any, Final

from xenpy.abi._libc import ffi

lib: Any = ffi.dlopen(None)

PROT_NONE: Final = 0
PROT_READ: Final = mmap.PROT_READ
PROT_WRITE: Final = mmap.PROT_WRITE
PROT_EXEC: Final = mmap.PROT_EXEC
MAP_SHARED: Final = mmap.MAP_SHARED
MAP_PRIVATE: Final = mmap.MAP_PRIVATE
MAP_ANONYMOUS: Final = mmap.MAP_ANONYMOUS
MAP_FIXED: Final = 0x10  # Ref: asm-generic/mman-common.h, as the next two
MAP_NORESERVE: Final = 0x4000
MADV_HUGEPAGE: Final = 14
MADV_POPULATE_WRITE: Final = 23

_SA_SIGINFO: Final = 4
_MAP_FAILED: Final = (1 << 64) - 1


def _raise_errno(what: str) -> None:
    raise OSError(ffi.errno, f"{what}: {os.strerror(ffi.errno)}")


def map_memory(hva: int, size: int, prot: int, flags: int, fd: int = -1, offset: int = 0) -> int:
    """Map memory and return its address.

    `hva` 0 lets the kernel choose unless `flags` has MAP_FIXED. `size` and `offset` are in bytes. Raises OSError.

    Ref: mmap(2)
    """
    result = int(lib.mmap(hva, size, prot, flags, fd, offset))
    if result == _MAP_FAILED:
        _raise_errno(f"mmap of {size:#x} bytes")
    return result


def memfd(name: str, size: int | None = None) -> int:
    """Return a new file in memory that can be passed to a process that is not trusted: nobody can make it shorter.

    One that is cut has every access beyond its end be a SIGBUS, and so the VMM's. One of a `size`, in bytes, keeps that, and can be written
    to for as long as it is there. Raises OSError.

    Ref: memfd_create(2), fcntl(2), F_ADD_SEALS
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    seals = fcntl.F_SEAL_SHRINK
    try:
        if size is not None:
            os.ftruncate(fd, size)
            seals |= fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(fd)
        raise
    return fd


def map_code(name: str, code: bytes) -> int:
    """Map machine code executable, never writable and executable at once, and return its address. Raises OSError."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        os.write(fd, code)
        return map_memory(0, len(code), PROT_READ | PROT_EXEC, MAP_PRIVATE, fd)
    finally:
        os.close(fd)


def unmap_memory(hva: int, size: int) -> None:
    """Unmap `size` bytes at `hva`. Raises OSError."""
    if lib.munmap(hva, size):
        _raise_errno("munmap")


def advise(hva: int, size: int, advice: int) -> bool:
    """Give the kernel advice about a mapping; tell whether it took it.

    Ref: madvise(2)
    """
    return bool(lib.madvise(hva, size, advice) == 0)


def ioctl(fd: int, request: int, arg: int) -> int:
    """Call ioctl without retrying on EINTR, which is how a kicked vCPU comes back; return -errno on failure.

    The interpreter lock is released during the call.
    """
    result: int = lib.ioctl(fd, request, arg)
    return -ffi.errno if result < 0 else result


def install_siginfo_handler(signum: int, handler: int) -> None:
    """Install native code at address `handler` for a signal, for the whole process, so that it interrupts system calls.

    Python's own handlers run later and in the main thread only, so they cannot serve to get a thread out of an ioctl. Raises OSError.

    Ref: sigaction(2), SA_SIGINFO
    """
    action = ffi.new("struct xenpy_sigaction *")
    action.sa_handler = handler
    action.sa_flags = _SA_SIGINFO
    if lib.sigaction(signum, action, ffi.NULL):
        _raise_errno("sigaction")


def buffer(hva: int, size: int) -> memoryview:
    """Return a writable view of `size` bytes at `hva`; the caller answers for their staying mapped."""
    return memoryview(ffi.buffer(ffi.cast("uint8_t *", hva), size)).cast("B")


def native_function(hva: int, signature: str) -> Any:
    """Make native code at `hva` callable, with a C `signature` such as `uint64_t(*)(uint64_t)`."""
    return ffi.cast(signature, hva)


def punch_hole(fd: int, offset: int, size: int) -> None:
    """Free the pages behind part of a file; it reads as zeroes afterwards. Raises OSError.

    Ref: fallocate(2), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
    """
    if lib.fallocate(fd, 0x02 | 0x01, offset, size):
        _raise_errno("fallocate")
