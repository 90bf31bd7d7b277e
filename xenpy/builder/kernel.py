"""Kernel images: any file that a `kernel=` line may name, as an ELF with its Xen notes."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from xenpy.builder import bzimage
from xenpy.builder.elf import ELF_MAGIC, ELFCLASS64, Buffer, Elf
from xenpy.builder.notes import XenNotes, read_notes
from xenpy.builder.unpacked import UnpackedCache, map_file
from xenpy.errors import ConfigError

if TYPE_CHECKING:
    from xenpy.memory import GuestMemory

UNPACKED_MAX: Final = 1 << 30
"""The most that a packed kernel may unpack to, in bytes; Linux's have some 60 MB."""

_XEN_VERSION: Final = "xen-3.0"
_PE_MAGIC: Final = b"MZ"


class KernelImage:
    """A kernel as an ELF file, with what it says of itself; use as a context manager or `close` it once it is loaded.

    `path` names it in errors; `cmdline_max` is the longest command line it takes, in bytes, 0 if it does not say.
    """

    def __init__(self, path: Path, data: Buffer, *, file: Path | None = None, cmdline_max: int = 0) -> None:
        self.path = path
        self.data = data
        self.cmdline_max = cmdline_max
        self.elf = Elf(str(path), data)
        self.notes: XenNotes = read_notes(self.elf)
        self._file = file

    @property
    def pvh_refusal(self) -> str | None:
        """Return why this is no PVH kernel, as a message to the user, or None if it is one."""
        if self.notes.phys32_entry is not None:
            return None
        reason = f"{self.path}: not a PVH kernel: it lacks the ELF note XEN_ELFNOTE_PHYS32_ENTRY (18)"
        if self.is_pv_capable:
            return f'{reason}; it is a PV kernel, so type="pv" would be right'
        return f"{reason}; Linux has it with CONFIG_PVH=y"

    @property
    def pv_refusal(self) -> str | None:
        """Return why this is no 64-bit PV kernel, as a message to the user, or None if it is one.

        Ref: xen/include/public/elfnote.h; what is required is what Xen's domain builder requires
        """
        notes = self.notes
        wrong = f"{self.path}: not a 64-bit PV kernel: "
        hint = '; it is a PVH kernel, so type="pvh" would be right' if notes.phys32_entry is not None else ""
        if not notes.source:
            return f"{wrong}it has no Xen ELF notes{hint}"
        if self.elf.elf_class != ELFCLASS64:
            return (
                f"{wrong}it is a 32-bit one, and those are not supported{hint or '; its 64-bit build would be right'}"
            )
        if notes.loader != "generic" and notes.guest_os != "linux":
            return f'{wrong}neither XEN_ELFNOTE_LOADER is "generic" nor XEN_ELFNOTE_GUEST_OS is "linux"{hint}'
        if notes.xen_version != _XEN_VERSION:
            return f'{wrong}XEN_ELFNOTE_XEN_VERSION is {notes.xen_version!r}; "{_XEN_VERSION}" would be right{hint}'
        if notes.entry is None and notes.virt_base is None:
            return f"{wrong}it has neither of XEN_ELFNOTE_ENTRY and XEN_ELFNOTE_VIRT_BASE{hint}"
        return None

    @property
    def is_pvh_capable(self) -> bool:
        """Tell whether the kernel can be started as PVH."""
        return self.notes.phys32_entry is not None

    @property
    def is_pv_capable(self) -> bool:
        """Tell whether the kernel can be started as a 64-bit PV guest."""
        return self.pv_refusal is None

    def copy(self, memory: GuestMemory, gpa: int, offset: int, size: int) -> None:
        """Copy `size` bytes of the image at `offset` into zeroed guest memory. Raises XenError(EFAULT) outside of it.

        Holes of the file are skipped, and the rest goes straight from the page cache to the guest.
        """
        target = memory.view(gpa, size)
        if self._file is None:
            target[:] = memoryview(self.data)[offset : offset + size]
            return
        descriptor = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            position = offset
            while (extent := _next_extent(descriptor, position, offset + size)) is not None:
                start, end = extent
                count = os.preadv(descriptor, [target[start - offset : end - offset]], start)
                if not count:
                    raise ConfigError(f"{self._file}: changed while it was being read")
                position = start + count
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Let go of the file; only the notes and headers already read stay usable."""
        if not isinstance(self.data, bytes):
            self.data.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def load_kernel(path: Path | str) -> KernelImage:
    """Open a kernel: an ELF file, a bzImage, or either of them compressed.

    Raises ConfigError if the file cannot be read, is no kernel or is damaged, and HostError if its compression needs a
    package that is not installed.
    """
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{path}: not a regular file; a kernel image (ELF or bzImage) would be right")
        if not status.st_size:
            raise ConfigError(f"{path}: empty; a kernel image (ELF or bzImage) would be right")
        data = map_file(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the kernel: {error.strerror}") from error
    if data[: len(ELF_MAGIC)] == ELF_MAGIC:
        return KernelImage(path, data, file=path)
    with data:
        return _load_packed(path, status, data)


def _load_packed(path: Path, status: os.stat_result, data: Buffer) -> KernelImage:
    header = bzimage.read_header(str(path), data) if bzimage.is_bzimage(data) else None
    cmdline_max = header.cmdline_size if header else 0
    cache = UnpackedCache(path, status)
    for find in (cache.by_identity, lambda: cache.by_content(data)):
        if image := _open_cached(path, find(), cmdline_max):
            return image
    unpacked = bzimage.unpack_payload(str(path), data, header, UNPACKED_MAX) if header else _unpack(str(path), data)
    image = KernelImage(path, unpacked, cmdline_max=cmdline_max)
    return _open_cached(path, cache.store(data, unpacked), cmdline_max) or image


def _unpack(name: str, data: Buffer) -> bytes:
    """Return the ELF file in a compressed file, which may be a bzImage first."""
    from xenpy.builder import compression

    form = compression.detect(data)
    if form is None:
        raise ConfigError(f"{name}: {_describe(data)}; an ELF file or a bzImage, also compressed, would be right")
    unpacked = compression.unpack(name, form, data[:], UNPACKED_MAX)
    if bzimage.is_bzimage(unpacked):
        return bzimage.unpack_payload(name, unpacked, bzimage.read_header(name, unpacked), UNPACKED_MAX)
    return unpacked


def _open_cached(path: Path, entry: Path | None, cmdline_max: int) -> KernelImage | None:
    """Open a cache entry; None if it is not there, or damaged by whatever befell the disk."""
    if entry is None:
        return None
    try:
        image = KernelImage(path, map_file(entry), file=entry, cmdline_max=cmdline_max)
        _ = image.elf.sections  # the section table is at a file's end: this notices a truncated one
    except (OSError, ValueError, ConfigError):
        return None
    return image


def _next_extent(descriptor: int, start: int, end: int) -> tuple[int, int] | None:
    """Return the next [start, end) of data in a file before `end`, or None if the rest is a hole."""
    if start >= end:
        return None
    try:
        start = os.lseek(descriptor, start, os.SEEK_DATA)
        hole = os.lseek(descriptor, start, os.SEEK_HOLE)
    except OSError as error:
        return None if error.errno == errno.ENXIO else (start, end)  # a file system may not know of holes
    return (start, min(end, hole)) if start < end else None


def _describe(data: Buffer) -> str:
    if data[: len(_PE_MAGIC)] == _PE_MAGIC:
        return "an EFI program that is no bzImage (a unified kernel image? take the .linux section out of it)"
    head = data[:8]
    return f"no kernel image: it begins with {head.hex(' ')}"
