"""xen_version."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fakes import UNMAPPED, FakeDomain, fake_domain

from xenpy.abi import version as abi
from xenpy.errors import Errno
from xenpy.memory import PAGE_SIZE
from xenpy.pv.version import PV_FEATURES, PVH_FEATURES, XENFEAT, XenVersion

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xenpy.abi.op import Op

XEN_VERSION = 17
ARG = 0x8000


@pytest.fixture
def domain() -> Iterator[FakeDomain]:
    with fake_domain() as made:
        yield made


def op(domain: FakeDomain, command: Op, arg: int = ARG, *, wide: bool = True) -> int:
    return domain.hypercall(XEN_VERSION, command.number, arg, wide=wide)


def test_the_number(domain: FakeDomain) -> None:
    assert op(domain, abi.XENVER_version, 0) == 4 << 16 | 20


def filled(domain: FakeDomain, command: Op, size: int) -> bytes:
    """Return what the command wrote over a page of 0xEE, having checked that it wrote `size` bytes."""
    domain.memory.write(ARG, b"\xee" * PAGE_SIZE)
    assert op(domain, command) == 0
    page = domain.memory.read(ARG, PAGE_SIZE)
    assert page[size:] == b"\xee" * (PAGE_SIZE - size)
    assert page[size - 1] == 0, "the string must end"
    return page[:size]


@pytest.mark.parametrize("long", [False, True])
def test_strings_end_within_their_fields(domain: FakeDomain, long: bool) -> None:
    texts = {name: ("x" * 3000 if long else name) for name in ("extraversion", "changeset", "compiler")}
    domain.version = XenVersion(4, 20, compile_by="é" * 9, **texts)
    assert filled(domain, abi.XENVER_extraversion, 16).rstrip(b"\0") == texts["extraversion"][:15].encode()
    assert filled(domain, abi.XENVER_changeset, 64).rstrip(b"\0") == texts["changeset"][:63].encode()
    info = filled(domain, abi.XENVER_compile_info, 64 + 16 + 32 + 32)
    assert info[:64].rstrip(b"\0") == texts["compiler"][:63].encode()
    assert info[79] == 0
    capabilities = filled(domain, abi.XENVER_capabilities, 1024).rstrip(b"\0").decode().split()
    assert {"xen-3.0-x86_64", "hvm-3.0-x86_64"} <= set(capabilities), "the interface's version, whatever Xen's is"


@pytest.mark.parametrize(("wide", "start"), [(False, 0xF580_0000), (True, 0xFFFF_8000_0000_0000)])
def test_platform_parameters(domain: FakeDomain, wide: bool, start: int) -> None:
    domain.memory.write(ARG, b"\xee" * 16)
    assert op(domain, abi.XENVER_platform_parameters, wide=wide) == 0
    word = 8 if wide else 4
    assert domain.number(ARG, word) == start
    assert domain.number(ARG + word, 1) == 0xEE


@pytest.mark.parametrize("is_pv", [False, True])
def test_features(is_pv: bool) -> None:
    with fake_domain(is_pv=is_pv) as domain:
        domain.put(ARG, (0, 4), (0xFFFF_FFFF, 4))
        assert op(domain, abi.XENVER_get_features) == 0
        assert domain.number(ARG + 4, 4) == (PV_FEATURES if is_pv else PVH_FEATURES)
        for submap in (1, (1 << 32) - 1):
            domain.put(ARG, (submap, 4), (0xFFFF_FFFF, 4))
            assert op(domain, abi.XENVER_get_features) == -Errno.EINVAL


def test_the_features_that_make_a_guest_what_it_is() -> None:
    assert PVH_FEATURES >> XENFEAT.auto_translated_physmap & 1
    assert not PV_FEATURES >> XENFEAT.auto_translated_physmap & 1
    assert not (PV_FEATURES | PVH_FEATURES) >> XENFEAT.dom0 & 1


def test_the_page_size_takes_no_argument(domain: FakeDomain) -> None:
    assert op(domain, abi.XENVER_pagesize, 0) == PAGE_SIZE
    assert op(domain, abi.XENVER_pagesize) == -Errno.EINVAL


def test_the_handle(domain: FakeDomain) -> None:
    assert op(domain, abi.XENVER_guest_handle) == 0
    assert domain.memory.read(ARG, 16) == domain.handle


def test_what_only_the_privileged_domain_may_know(domain: FakeDomain) -> None:
    assert op(domain, abi.XENVER_build_id) == -Errno.EPERM
    assert filled(domain, abi.XENVER_commandline, len("<denied>") + 1) == b"<denied>\0"


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6, 8, 9])
def test_bad_pointers(domain: FakeDomain, number: int) -> None:
    assert domain.hypercall(XEN_VERSION, number, UNMAPPED) == -Errno.EFAULT
