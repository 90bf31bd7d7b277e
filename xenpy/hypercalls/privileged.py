"""The hypercalls of toolstacks and dom0, which Xen refuses to all other domains, each in its own way.

Ref: xen/include/public/platform.h, sysctl.h, domctl.h, kexec.h, hypfs.h, arch-x86/xen-mca.h, pmu.h
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.errors import Errno, XenError
from xenpy.hypercalls.dispatch import hypercall
from xenpy.hypercalls.domids import refusal
from xenpy.hypercalls.pv import pv_domain

if TYPE_CHECKING:
    from xenpy.hypercalls.call import Call

PLATFORM_VERSION: Final = 0x03000001
SYSCTL_VERSION: Final = 0x15
DOMCTL_VERSION: Final = 0x15
"""Those of Xen 4.17's interfaces: another's structures are refused first."""


def _check_version(call: Call, wanted: int) -> None:
    """See that the argument, which begins with command and version, is for this interface. Raises XenError: EFAULT, EACCES."""
    _, version = call.words(call.args[0], 2, 4)
    if version != wanted:
        raise XenError(Errno.EACCES, f"version {version:#x} of the interface, not {wanted:#x}")


def _privileged(what: str) -> XenError:
    return XenError(Errno.EPERM, f"{what} is for privileged domains")


@hypercall(7, "platform_op")
def platform_op(call: Call) -> None:
    """Refuse: the machine is not the domain's."""
    _check_version(call, PLATFORM_VERSION)
    raise _privileged("platform_op")


@hypercall(35, "sysctl")
def sysctl(call: Call) -> None:
    """Refuse: the host is not the domain's to control."""
    _check_version(call, SYSCTL_VERSION)
    raise _privileged("sysctl")


@hypercall(36, "domctl")
def domctl(call: Call) -> None:
    """Refuse: a domU controls no domain. Raises XenError: EFAULT, EACCES, ESRCH, EPERM."""
    _check_version(call, DOMCTL_VERSION)
    (domid,) = call.words(call.args[0] + 8, 1, 2)
    raise _privileged("domctl") if domid == call.domain.domid else refusal(call, domid)


@hypercall(37, "kexec_op")
def kexec_op(call: Call) -> None:
    """Refuse: a domU cannot have the host's kernel replaced."""
    pv_domain(call)
    raise _privileged("kexec_op")


@hypercall(40, "xenpmu_op")
def xenpmu_op(_call: Call) -> None:
    """Refuse: performance counters are not virtual here, as in Xen by default."""
    raise XenError(Errno.EOPNOTSUPP, "there are no virtual performance counters")


@hypercall(42, "hypfs_op")
def hypfs_op(_call: Call) -> None:
    """Refuse: the hypervisor's settings are not the domain's."""
    raise _privileged("hypfs_op")


@hypercall(48, "mca")
def mca(call: Call) -> None:
    """Refuse: machine checks are the host's."""
    pv_domain(call)
    raise _privileged("mca")
