"""Kernel and initramfs of the emulated host, made from the distribution's packages and kept in the cache."""

from __future__ import annotations

import hashlib
import importlib.resources
from typing import TYPE_CHECKING

from xenpy.cache import cache_directory, locked, publish_bytes
from xenpy.errors import HostError

if TYPE_CHECKING:
    from pathlib import Path

    from xenpy.guests import GuestImages

GUEST = "debian-6.12"
"""The generic flavour, because it has 9p, of a kernel that has KVM's Xen support."""
MODULES = ("9p", "9pnet_virtio", "overlay", "kvm-amd", "tun")
MODULE_OPTIONS = {"kvm_amd": "nested=0"}
MSIZE = 512_000
"""Largest 9p message in bytes that Linux' virtio transport can carry: 125 pages.  Ref: Linux net/9p/trans_virtio.c."""

RECIPE = 1
"""To be counted up when the archive changes for other reasons than what else goes into its name."""
KERNEL_LIMIT = 512 << 20
"""Bytes of an unpacked kernel; Debian's takes 55 MiB."""


def host_images() -> tuple[Path, Path]:
    """Return the paths of kernel and initramfs, made at first use; raises HostError if the packages cannot be had."""
    from xenpy.guests import provide

    images = provide(GUEST)
    init, agent = (
        importlib.resources.files(__package__).joinpath(name).read_bytes() for name in ("init.sh", "agent.sh")
    )
    directory = cache_directory("emulated")
    recipe = repr((RECIPE, images.release, MODULES, MODULE_OPTIONS, MSIZE, init, agent)).encode()
    initramfs = directory / f"{hashlib.sha256(recipe).hexdigest()[:32]}.cpio"
    kernel = directory / f"vmlinux-{images.release}"
    with locked(initramfs):
        if not initramfs.exists():
            publish_bytes(initramfs, _initramfs(images, init, agent))
        if not kernel.exists():
            unpacked = _unpacked_kernel(images.kernel)
            if unpacked is None:
                return images.kernel, initramfs
            publish_bytes(kernel, unpacked)
    return kernel, initramfs


def _initramfs(images: GuestImages, init: bytes, agent: bytes) -> bytes:
    """Return the archive, not compressed: the emulated processor is slower at that than at anything else."""
    from xenpy.cpio import Archive
    from xenpy.guests import busybox
    from xenpy.kmodules import ModuleTree, unsigned

    if images.modules is None:
        raise ValueError(f"{images.name} comes without modules")
    archive = Archive()
    for directory in ("dev", "proc", "etc/options"):
        archive.directory(directory)
    archive.character_device("dev/console", 5, 1)
    archive.file("bin/busybox", busybox().read_bytes(), mode=0o755)
    archive.file("init", init, mode=0o755)
    archive.file("etc/agent", agent)
    archive.file("etc/msize", str(MSIZE).encode())
    modules = ModuleTree(images.modules).closure(MODULES)
    for module in modules:
        archive.file(
            f"lib/modules/{module.name}.ko", unsigned(module.image)
        )  # the digests would take 0.6 s of every boot
    archive.file("etc/modules", " ".join(module.name for module in modules).encode())
    for name, options in MODULE_OPTIONS.items():
        archive.file(f"etc/options/{name}", options.encode())
    return archive.to_bytes()


def _unpacked_kernel(bzimage: Path) -> bytes | None:
    """Return the ELF kernel in a bzImage, or None if that takes a package that is not installed.

    QEMU enters an ELF kernel at its PVH note, which spares the emulated processor 1 s of decompression.
    """
    from xenpy.builder.bzimage import read_header, unpack_payload

    data = bzimage.read_bytes()
    try:
        return unpack_payload(bzimage.name, data, read_header(bzimage.name, data), KERNEL_LIMIT)
    except HostError:
        return None
