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
    from xenpy.testing.forks import Forks
    from xenpy.testing.trace.last import LastRecords

_MARKER: Final = (
    "xen_guest(cfg=None, **settings): the guest that the fixture of this name boots: an xl.cfg file, settings that stand for"
    " the file's own (memory=128, kernel='vmlinuz'), and timeout=, paused= and snapshot= of xenpy.Guest; files are relative to the test's"
)
_FORK_MARKER: Final = (
    "xen_fork(scope='session', prepare='true'): how the fixture of this name boots the guest that it forks: once for all tests or, with"
    " 'module', for those of a module; prepare is a command for its shell, or a function of the guest, to get it ready"
)
_guests: Final = pytest.StashKey["Watched"]()
_DEFAULT_TRACE: Final = 50


class Watched:
    """Of a run: the guests made since the running test began, and earlier ones that still live, with what they last asked of Xen."""

    def __init__(self, trace: int) -> None:
        self._trace = trace
        """How many records to keep of each, 0 for none."""
        self._traces: dict[Guest, LastRecords] = {}
        self.guests: list[Guest] = []

    def add(self, guest: Guest) -> None:
        """Watch a guest, which does not run yet."""
        self.guests.append(guest)
        if self._trace:
            from xenpy.testing.trace.last import keep_last

            self._traces[guest] = keep_last(guest, self._trace)

    def trace(self, guest: Guest) -> str:
        """Return what a guest last asked of Xen."""
        return self._traces[guest].text if guest in self._traces else ""

    def report(self) -> list[tuple[str, str]]:
        """Return what to show when a test failed: titles and texts."""
        sections = []
        for guest in self.guests:
            sections += guest.report()
            if text := self.trace(guest):
                sections.append((f"what {guest.name} last asked of Xen", text))
        return sections

    def forget(self, *, closed: bool) -> None:
        """Forget the guests that are closed, or all."""
        for guest in [guest for guest in self.guests if guest.closed or not closed]:
            self.guests.remove(guest)
            self._traces.pop(guest, None)


def _trace_length(text: str) -> int:
    if text == "off":
        return 0
    if text.isascii() and text.isdigit() and 0 < int(text) <= _MAX_TRACE:
        return int(text)
    raise pytest.UsageError(f"--xen-trace: {text!r} is neither off nor a number from 1 to {_MAX_TRACE}")


_MAX_TRACE: Final = 10_000


# -- options ----------------------------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("xen", "Xen guests")
    group.addoption("--xen-cfg", metavar="FILE", help="xl.cfg of the guest that xen_guest boots, whatever tests say.")
    group.addoption("--xen-kernel", metavar="FILE", help="Kernel that xen_guest boots, whatever tests and xl.cfg say.")
    group.addoption("--xen-keep", metavar="DIR", help="Write the consoles and traces of all guests to files below DIR.")
    group.addoption(
        "--xen-trace",
        metavar="N|off",
        default=str(_DEFAULT_TRACE),
        help="Show the last N hypercalls, xenstore messages, events and grants of each guest when a test fails"
        f" (default {_DEFAULT_TRACE}), or trace nothing.",
    )
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
    config.addinivalue_line("markers", _FORK_MARKER)
    for name in ("xen_cfg", "xen_kernel"):
        path = config.getoption(name)
        if path is not None and not _from_invocation(config, path).is_file():
            raise pytest.UsageError(f"--{name.replace('_', '-')}: there is no file {path}")
    watched = config.stash[_guests] = Watched(_trace_length(config.getoption("xen_trace")))
    watchers.on_created.append(watched.add)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Listen no more."""
    watched = config.stash.get(_guests, None)
    if watched is not None:
        watchers.on_created.remove(watched.add)
        watched.forget(closed=False)


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


@pytest.fixture(scope="session")
def _xen_forks_of_session() -> Iterator[Forks]:
    """Return the guests that are booted once for all tests."""
    yield from _forks()


@pytest.fixture(scope="module")
def _xen_forks_of_module() -> Iterator[Forks]:
    """Return the guests that are booted once for the tests of a module."""
    yield from _forks()


def _forks() -> Iterator[Forks]:
    from xenpy.testing.forks import Forks

    forks = Forks()
    yield forks
    forks.close()


@pytest.fixture
def xen_fork(request: pytest.FixtureRequest) -> Iterator[Guest]:
    """Fork the guest of the test's xen_guest marker, which is booted for the first test that wants it; end the fork afterwards."""
    from xenpy import ConfigError, HostError
    from xenpy.testing.forks import scope_of

    request.getfixturevalue(
        "xen_host"
    ).close()  # which skips where there is no usable /dev/kvm; a fork has a host of its own
    guest, why = None, ""
    try:
        guest = request.getfixturevalue(f"_xen_forks_of_{scope_of(request.node)}").fork(request)
    except (ConfigError, HostError) as error:
        why = str(error)
    if guest is None:
        pytest.fail(f"xen_fork: {why}", pytrace=False)
    with guest:
        yield guest


# -- reports ----------------------------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach the guests' output to the report of a failure, where JUnit files and pytest-xdist take it along."""
    report = yield
    watched = item.config.stash[_guests]
    if watched.guests:
        if report.failed:
            _attach(report, watched.report())
        if call.when == "teardown":
            _keep(item, watched)
            watched.forget(closed=True)
    return report


def _attach(report: pytest.TestReport, sections: list[tuple[str, str]]) -> None:
    # A section of the failure itself shows whatever --show-capture says, and is all that JUnit files have by default.
    add = getattr(report.longrepr, "addsection", None)
    for title, text in sections:
        if add is not None:
            add(title, text)
        else:
            report.sections.append((title, text))


def _keep(item: pytest.Item, watched: Watched) -> None:
    directory = item.config.getoption("xen_keep")
    if directory is None:
        return
    import re

    name = re.sub(r"[^\w.-]+", "-", item.nodeid).strip("-")
    target = _from_invocation(item.config, directory) / name
    target.mkdir(parents=True, exist_ok=True)
    for number, guest in enumerate(watched.guests, 1):
        for what, transcript in (("console", guest.console), ("emergency", guest.emergency)):
            (target / f"{number}-{guest.name}.{what}.log").write_bytes(transcript.data)
        if text := watched.trace(guest):
            (target / f"{number}-{guest.name}.trace.log").write_text(text, encoding="utf-8", errors="backslashreplace")
