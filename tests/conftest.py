"""Fixtures that more than one directory of tests uses."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from xenpy.errors import XenpyError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xenpy.emulated import EmulatedHost
    from xenpy.guests import GuestImages

# A shell that starts something in the background has it ignore the signal, and all that it starts, such as what tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

KVM = Path("/dev/kvm")

# How fast a machine makes examples, and works them off, is no verdict; fixtures here hold what no example changes.
settings.register_profile(
    "xenpy", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.load_profile("xenpy")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, with the reason, what this machine cannot run; and run what needs an emulated host last, so that failures show early."""
    no_kvm = None if os.access(KVM, os.R_OK | os.W_OK) else f"{KVM} is missing or not ours to open"
    no_qemu = None if shutil.which("qemu-system-x86_64") else "qemu-system-x86_64 is not installed"
    for item in items:
        if item.get_closest_marker("kvm") and no_kvm:
            item.add_marker(pytest.mark.skip(reason=no_kvm))
        if item.get_closest_marker("emulated") and no_qemu:
            item.add_marker(pytest.mark.skip(reason=no_qemu))
    items.sort(key=lambda item: bool(item.get_closest_marker("emulated")))


@pytest.fixture(scope="session")
def emulated_host() -> Iterator[EmulatedHost]:
    """One emulated host for all tests that run commands in it."""
    from xenpy.emulated import EmulatedHost

    try:
        host = EmulatedHost()
        host.__enter__()
    except XenpyError as error:
        pytest.skip(f"no emulated host: {error}")
    try:
        yield host
    finally:
        host.close()


def images(name: str) -> GuestImages:
    """Return a distribution's kernel, or skip the test with the reason why it cannot be had."""
    from xenpy.guests import provide

    try:
        return provide(name)
    except XenpyError as error:
        pytest.skip(f"no guest {name}: {error}")
