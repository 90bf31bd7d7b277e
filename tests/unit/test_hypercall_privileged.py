"""What Xen refuses to all domains but dom0, and commands of 32 bits."""

from __future__ import annotations

import pytest
from fakes import OTHER_DOMID, UNMAPPED, fake_domain

from xenpy.errors import Errno
from xenpy.hypercalls import privileged

PLATFORM_OP, SYSCTL, DOMCTL, KEXEC_OP, XENPMU_OP, HYPFS_OP, MCA = 7, 35, 36, 37, 40, 42, 48
SCHED_OP, HVM_OP = 29, 34
ARG = 0x8000
_VERSIONS = {
    PLATFORM_OP: privileged.PLATFORM_VERSION, SYSCTL: privileged.SYSCTL_VERSION, DOMCTL: privileged.DOMCTL_VERSION,
}  # fmt: skip


@pytest.mark.parametrize("is_pv", [False, True])
@pytest.mark.parametrize("number", _VERSIONS)
def test_the_version_comes_first(number: int, is_pv: bool) -> None:
    with fake_domain(is_pv=is_pv) as domain:
        assert domain.hypercall(number, UNMAPPED) == -Errno.EFAULT
        domain.put(ARG, (1, 4), (99, 4), (OTHER_DOMID, 2))
        assert domain.hypercall(number, ARG) == -Errno.EACCES
        domain.put(ARG, (1, 4), (_VERSIONS[number], 4), (OTHER_DOMID, 2))
        assert domain.hypercall(number, ARG) == -Errno.EPERM


def test_domctl_of_nobody() -> None:
    with fake_domain() as domain:
        domain.put(ARG, (1, 4), (privileged.DOMCTL_VERSION, 4), (4711, 2))
        assert domain.hypercall(DOMCTL, ARG) == -Errno.ESRCH


@pytest.mark.parametrize(
    ("number", "pv", "pvh"),
    [
        (KEXEC_OP, Errno.EPERM, Errno.ENOSYS),
        (MCA, Errno.EPERM, Errno.ENOSYS),
        (HYPFS_OP, Errno.EPERM, Errno.EPERM),
        (XENPMU_OP, Errno.EOPNOTSUPP, Errno.EOPNOTSUPP),
    ],
)
def test_without_a_look_at_the_arguments(number: int, pv: Errno, pvh: Errno) -> None:
    for is_pv, errno in ((True, pv), (False, pvh)):
        with fake_domain(is_pv=is_pv) as domain:
            assert domain.hypercall(number, UNMAPPED, UNMAPPED) == -errno


def test_a_command_is_32_bits_wide_but_for_those_that_are_not() -> None:
    with fake_domain() as domain:
        assert domain.hypercall(SCHED_OP, 1 << 32, 0) == 0
        assert domain.vcpus[0].asked == [("yield",)]
        assert domain.hypercall(HVM_OP, 1 << 32 | 5, 0) == -Errno.ENOSYS
        assert domain.hypercall(HVM_OP, 5, 0) == 0
