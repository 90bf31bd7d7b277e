"""xen_version: what hypervisor is this?

Ref: xen/include/public/version.h
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from xenpy.abi import version as abi
from xenpy.errors import Errno, XenError
from xenpy.hypercalls.dispatch import Hypercall
from xenpy.memory import PAGE_SIZE
from xenpy.pv.version import CAPABILITIES, PV_FEATURES, PVH_FEATURES

if TYPE_CHECKING:
    from xenpy.hypercalls.call import Call

xen_version = Hypercall(17, "xen_version")

HYPERVISOR_VIRT_START: Final = 0xFFFF_8000_0000_0000
"""Where Xen's own area starts in a 64-bit guest's space. Ref: xen/include/public/arch-x86/xen-x86_64.h"""
HYPERVISOR_VIRT_START_32: Final = 0xF580_0000
_HANDLE_SIZE: Final = 16
_DENIED: Final = b"<denied>\0"


def _string(text: str, size: int) -> bytes:
    """Return a NUL-terminated string in a field of `size` bytes, cut if need be."""
    return text.encode()[: size - 1].ljust(size, b"\0")


@xen_version.handles(abi.XENVER_version)
def version(call: Call) -> int:
    """Return major << 16 | minor."""
    return call.domain.version.number


@xen_version.handles(abi.XENVER_extraversion)
def extraversion(call: Call) -> None:
    """Copy out the part of the version behind the minor number."""
    call.write(call.args[1], _string(call.domain.version.extraversion, abi.XEN_EXTRAVERSION_LEN))


@xen_version.handles(abi.XENVER_compile_info)
def compile_info(call: Call) -> None:
    """Copy out struct xen_compile_info."""
    info = call.domain.version
    fields = ((info.compiler, 64), (info.compile_by, 16), (info.compile_domain, 32), (info.compile_date, 32))
    call.write(call.args[1], b"".join(_string(text, size) for text, size in fields))


@xen_version.handles(abi.XENVER_capabilities)
def capabilities(call: Call) -> None:
    """Copy out the list of guest types."""
    call.write(call.args[1], _string(CAPABILITIES, abi.XEN_CAPABILITIES_INFO_LEN))


@xen_version.handles(abi.XENVER_changeset)
def changeset(call: Call) -> None:
    """Copy out what the hypervisor was built from."""
    call.write(call.args[1], _string(call.domain.version.changeset, abi.XEN_CHANGESET_INFO_LEN))


@xen_version.handles(abi.XENVER_platform_parameters)
def platform_parameters(call: Call) -> None:
    """Copy out where the hypervisor's area starts."""
    call.store_words(call.args[1], [HYPERVISOR_VIRT_START if call.wide else HYPERVISOR_VIRT_START_32])


@xen_version.handles(abi.XENVER_get_features)
def get_features(call: Call, info: Any) -> None:
    """Tell the XENFEAT_* bits of one 32-bit submap, of which there is only number 0."""
    if info.submap_idx:
        raise XenError(Errno.EINVAL, f"feature submap {info.submap_idx}")
    info.submap = PV_FEATURES if call.domain.is_pv else PVH_FEATURES


@xen_version.handles(abi.XENVER_pagesize)
def pagesize(call: Call) -> int:
    """Return the page size; like Xen, refuse a caller that passes an argument."""
    if call.args[1]:
        raise XenError(Errno.EINVAL, "XENVER_pagesize takes no argument")
    return PAGE_SIZE


@xen_version.handles(abi.XENVER_guest_handle)
def guest_handle(call: Call) -> None:
    """Copy out the domain's handle (its UUID)."""
    call.write(call.args[1], call.domain.handle[:_HANDLE_SIZE])


@xen_version.handles(abi.XENVER_commandline)
def commandline(call: Call) -> None:
    """Copy out the word that stands for a command line which is the privileged domain's to know."""
    call.write(call.args[1], _DENIED)


@xen_version.handles(abi.XENVER_build_id)
def build_id(_call: Call) -> int:
    """Refuse: the build id is the privileged domain's to know."""
    raise XenError(Errno.EPERM, "the build id is for the privileged domain")
