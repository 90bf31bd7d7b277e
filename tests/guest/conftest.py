"""Test kernels: each is built and run once a session for each mode, and each test in it is a pytest item."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import build
import pytest
from harness import MODES, PV_MODES, PvRuns, Runs
from toolstack_rig import Toolstack

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def _why_not(*, emulated: bool) -> str | None:
    if not emulated and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "no usable /dev/kvm"
    return build.missing()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if build.HERE in item.path.parents]
    reasons = {emulated: _why_not(emulated=emulated) for emulated in (False, True)} if here else {}
    for item in here:
        emulated = item.get_closest_marker("emulated") is not None
        reason = reasons[emulated]
        item.add_marker(pytest.mark.guest)
        if not emulated:
            item.add_marker(pytest.mark.kvm)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "mode" in metafunc.fixturenames:
        metafunc.parametrize("mode", MODES, ids=str, scope="session")
    if "pv_mode" in metafunc.fixturenames:
        metafunc.parametrize("pv_mode", PV_MODES, scope="session")


@pytest.fixture(scope="session")
def builder(tmp_path_factory: pytest.TempPathFactory) -> build.Builder:
    return build.Builder(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="session")
def runs(builder: build.Builder) -> Runs:
    return Runs(builder)


@pytest.fixture(scope="session")
def pv_runs(builder: build.Builder) -> PvRuns:
    return PvRuns(builder)


@pytest.fixture
def tools(tmp_path: Path, builder: build.Builder) -> Iterator[Toolstack]:
    toolstack = Toolstack(tmp_path, builder.build("console"))
    yield toolstack
    toolstack.destroy_all()
    assert toolstack.entries() == []


@pytest.fixture
def ending(builder: build.Builder) -> str:
    """Return the setting that makes a guest one that ends as its command line says."""
    return f"kernel={builder.build('ending')}"
