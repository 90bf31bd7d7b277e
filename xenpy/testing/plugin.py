"""The pytest plugin: guests as fixtures, and their consoles in the reports of failed tests.

It is loaded wherever xenpy is installed, so it imports nothing but pytest before a test asks for a guest, has no automatic fixture, and
its hooks do nothing while there are no guests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from xenpy.api import watchers

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from xenpy.api.guest import Guest
    from xenpy.api.host import Host

_MARKER: Final = (
    "xen_guest(cfg=None, **settings): the guest that the fixture of this name boots: an xl.cfg file, settings that stand for"
    " the file's own (memory=128, kernel='vmlinuz'), and timeout=, paused= and snapshot= of xenpy.Guest; files are relative to the test's"
)
_guests: Final = pytest.StashKey["list[Guest]"]()
"""Of a run's configuration: the guests made since the running test began, and earlier ones that still live."""


# -- options ----------------------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("xen", "Xen guests")
    group.addoption("--xen-cfg", metavar="FILE", help="xl.cfg of the guest that xen_guest boots, whatever tests say.")
    group.addoption("--xen-kernel", metavar="FILE", help="Kernel that xen_guest boots, whatever tests and xl.cfg say.")
    group.addoption("--xen-keep", metavar="DIR", help="Write the consoles of all guests to files below DIR.")
    group.addoption(
        "--xen-host",
        choices=["kvm", "emulated"],
        help="kvm: /dev/kvm of this machine, which must be usable (without this option tests are skipped where it is not);"
        " emulated: run all of pytest in a KVM host that QEMU emulates: slow, but needs no /dev/kvm.",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """Run pytest inside the emulated host instead, if so asked."""
    option = config.option
    if option.xen_host != "emulated" or option.help or option.version or hasattr(config, "workerinput"):
        return None
    from xenpy.testing import emulation

    return None if emulation.is_inside() else emulation.run(config)


def pytest_configure(config: pytest.Config) -> None:
    """Listen for guests."""
    config.addinivalue_line("markers", _MARKER)
    for name in ("xen_cfg", "xen_kernel"):
        path = config.getoption(name)
        if path is not None and not _from_invocation(config, path).is_file():
            raise pytest.UsageError(f"--{name.replace('_', '-')}: there is no file {path}")
    guests = config.stash[_guests] = []
    watchers.on_created.append(guests.append)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Listen no more."""
    guests = config.stash.get(_guests, None)
    if guests is not None:
        watchers.on_created.remove(guests.append)
        guests.clear()


def _from_invocation(config: pytest.Config, path: str) -> Path:
    return config.invocation_params.dir / path


# -- fixtures ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def xen_host(pytestconfig: pytest.Config) -> Iterator[Host]:
    """Return a host for this test's guests, which share event channels, grants and xenstore; it is closed with them."""
    from xenpy import Host, HostError

    host, why = None, ""
    try:
        host = Host()
    except HostError as error:
        why = str(error)
    if host is None:
        if pytestconfig.getoption("xen_host") is None:
            pytest.skip(why)
        pytest.fail(why, pytrace=False)
    with host:
        yield host


@pytest.fixture
def xen_guest(request: pytest.FixtureRequest, xen_host: Host) -> Iterator[Guest]:
    """Boot the guest of the test's xen_guest marker, or of the command line; destroy it at the end."""
    from xenpy import ConfigError, HostError
    from xenpy.testing.choice import make_guest

    guest, why = None, ""
    try:
        guest = make_guest(request, xen_host)
    except (ConfigError, HostError) as error:
        why = str(error)
    if guest is None:  # said here, out of reach of the exception, of which pytest would show the whole story
        pytest.fail(f"xen_guest: {why}", pytrace=False)
    with guest:
        yield guest


# -- reports ----------------------------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach the guests' output to the report of a failure, where JUnit files and pytest-xdist take it along."""
    report = yield
    guests = item.config.stash[_guests]
    if guests:
        if report.failed:
            _attach(report, [section for guest in guests for section in guest.report()])
        if call.when == "teardown":
            _keep(item, guests)
            guests[:] = [guest for guest in guests if not guest.closed]
    return report


def _attach(report: pytest.TestReport, sections: list[tuple[str, str]]) -> None:
    # A section of the failure itself shows whatever --show-capture says, and is all that JUnit files have by default.
    add = getattr(report.longrepr, "addsection", None)
    for title, text in sections:
        if add is not None:
            add(title, text)
        else:
            report.sections.append((title, text))


def _keep(item: pytest.Item, guests: list[Guest]) -> None:
    directory = item.config.getoption("xen_keep")
    if directory is None:
        return
    import re

    name = re.sub(r"[^\w.-]+", "-", item.nodeid).strip("-")
    target = _from_invocation(item.config, directory) / name
    target.mkdir(parents=True, exist_ok=True)
    for number, guest in enumerate(guests, 1):
        for what, transcript in (("console", guest.console), ("emergency", guest.emergency)):
            (target / f"{number}-{guest.name}.{what}.log").write_bytes(transcript.data)
