"""Test kernels: each is built and run once a session for each mode, and each test in it is a pytest item."""

from __future__ import annotations

import os

import build
import pytest
from harness import MODES, PV_MODES, PvRuns, Runs


def _why_not() -> str | None:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "no usable /dev/kvm"
    return build.missing()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if build.HERE in item.path.parents]
    reason = _why_not() if here else None
    for item in here:
        item.add_marker(pytest.mark.guest)
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
