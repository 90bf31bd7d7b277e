"""The pytest plugin, as users' test suites see it: each test here runs pytest on a small suite of its own."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import venv
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from api_rig import kernel

import xenpy

pytest_plugins = ["pytester"]

needs_kvm = pytest.mark.kvm

SUITE = """
import pytest

@pytest.mark.xen_guest(kernel="talker", memory=32, timeout=60)
def test_talks(xen_guest):
    xen_guest.console.sendline("hello")
    assert xen_guest.console.expect(r"\\[(.*)\\]")[1] == "hello"
"""
FAILING = """
import pytest

@pytest.mark.xen_guest(kernel="talker", memory=32, timeout=60)
def test_fails(xen_guest):
    xen_guest.console.expect("ready")
    xen_guest.emergency.expect("listening")
    assert not "as hoped"
"""


@pytest.fixture
def suite(pytester: pytest.Pytester, request: pytest.FixtureRequest) -> pytest.Pytester:
    """A directory with the test kernels a suite may name; warnings are errors in it."""
    if request.node.get_closest_marker("kvm"):
        for name, file in (("talker", "console"), ("ender", "ending")):
            (pytester.path / name).symlink_to(kernel(file))
    pytester.makeini("[pytest]\nfilterwarnings = error\naddopts = --strict-markers --strict-config\n")
    return pytester


@needs_kvm
def test_a_marked_test_has_its_guest(suite: pytest.Pytester) -> None:
    suite.makepyfile(SUITE)
    suite.runpytest_subprocess().assert_outcomes(passed=1)


@needs_kvm
def test_markers_of_module_class_and_test_add_up(suite: pytest.Pytester) -> None:
    suite.path.joinpath("guest.cfg").write_text(f'type="pvh"\nname="filed"\nmemory=64\nkernel="{suite.path}/ender"\n')
    suite.mkpydir("below")
    suite.path.joinpath("below", "test_it.py").write_text(
        "import pytest\n"
        "pytestmark = pytest.mark.xen_guest('../guest.cfg', cmdline='crash')\n"
        "@pytest.mark.xen_guest(memory=48)\n"
        "class TestIt:\n"
        "    @pytest.mark.xen_guest(cmdline='poweroff', paused=True)\n"
        "    def test_it(self, xen_guest):\n"
        "        assert (xen_guest.name, xen_guest.config.memory_mib) == ('filed', 48)\n"
        "        xen_guest.unpause()\n"
        "        assert xen_guest.wait(20).kind.value == 'power-off'\n"
    )
    suite.runpytest_subprocess().assert_outcomes(passed=1)


@needs_kvm
def test_the_command_line_chooses_guest_and_kernel(suite: pytest.Pytester) -> None:
    suite.makepyfile(SUITE)
    config = suite.path / "other.cfg"
    config.write_text('type="pvh"\nname="other"\nkernel="/dev/null"\ncmdline="from cfg"\n')
    (suite.path / "sub").mkdir()
    for name in ("talker", "other.cfg"):
        (suite.path / name).rename(suite.path / "sub" / name)
    suite.runpytest_subprocess("--xen-kernel", "sub/talker").assert_outcomes(passed=1)
    suite.runpytest_subprocess("--xen-cfg", "sub/other.cfg", "--xen-kernel", "sub/talker").assert_outcomes(passed=1)
    result = suite.runpytest_subprocess("--xen-cfg", "sub/other.cfg")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*xen_guest: */dev/null*"])


@needs_kvm
def test_guests_share_the_fixture_host(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        SUITE
        + """
@pytest.mark.xen_guest(kernel="talker", name="first", timeout=60)
def test_two(xen_host, xen_guest):
    import xenpy
    with xenpy.Guest.from_kernel(xen_guest.config.kernel, host=xen_host, name="second", timeout=60) as other:
        path = f"/local/domain/{other.domid}/name"
        assert xen_guest.xenstore.read(path) == "second"
    assert not xen_guest.xenstore.exists(path)
"""
    )
    suite.runpytest_subprocess().assert_outcomes(passed=2)


@needs_kvm
def test_a_failure_shows_the_console_and_so_does_junit(suite: pytest.Pytester) -> None:
    suite.makepyfile(FAILING)
    result = suite.runpytest_subprocess("--junitxml=report.xml", "--show-capture=no")
    result.assert_outcomes(failed=1)
    wanted = [
        "*console of guest (running)*", "ready", "*emergency console*", "listening", "*what guest last asked of Xen*",
        "*sched_op(*",
    ]  # fmt: skip
    result.stdout.fnmatch_lines(wanted)
    failure = ET.parse(suite.path / "report.xml").find(".//failure")
    assert failure is not None
    assert failure.text is not None
    assert "console of guest (running)" in failure.text
    assert "\nready\n" in failure.text
    assert "console_io(write" in failure.text


@needs_kvm
@pytest.mark.parametrize(("option", "lines"), [("off", 0), ("3", 3), ("1", 1)])
def test_as_much_of_the_trace_is_shown_as_is_asked_for(suite: pytest.Pytester, option: str, lines: int) -> None:
    suite.makepyfile(FAILING)
    result = suite.runpytest_subprocess(f"--xen-trace={option}", "--xen-keep=kept")
    result.assert_outcomes(failed=1)
    shown = [line for line in result.outlines if re.match(r" *\d+\.\d{6} d1", line)]
    assert len(shown) == lines
    files = list(suite.path.glob("kept/*/1-guest.trace.log"))
    assert [len(file.read_text().splitlines()) for file in files] == [lines] * bool(lines)


@needs_kvm
def test_guests_made_by_hand_and_failures_of_fixtures_are_shown_too(suite: pytest.Pytester) -> None:
    suite.makepyfile("""
        from pathlib import Path
        import pytest, xenpy

        @pytest.fixture(scope="module")
        def lasting():
            with xenpy.Guest.from_kernel("ender", cmdline="spin", name="lasting") as guest:
                guest.emergency.expect("spin")
                yield guest

        @pytest.fixture
        def broken(lasting):
            raise ValueError

        def test_one(lasting): pass
        def test_two(lasting): pytest.fail("oops", pytrace=False)
        def test_three(broken): pass

        def test_four():
            with xenpy.Guest.from_kernel("ender", cmdline="crash", name="brief") as guest:
                guest.console.expect("never")
        """)
    result = suite.runpytest_subprocess("-rN")
    result.assert_outcomes(passed=1, failed=2, errors=1)
    lines = result.outlines
    assert sum("console of lasting" in line or "ending: spin" in line for line in lines) >= 3
    result.stdout.fnmatch_lines(["*GuestEnded: brief ended (crash) without output like 'never'*"])
    assert "ending: crash" in lines


@needs_kvm
def test_kept_consoles(suite: pytest.Pytester) -> None:
    suite.makepyfile(SUITE + FAILING)
    suite.runpytest_subprocess("--xen-keep=kept").assert_outcomes(passed=1, failed=1)
    name = "test_kept_consoles.py-test_talks"
    assert (suite.path / "kept" / name / "1-guest.console.log").read_bytes() == b"ready\n[hello]\n"
    assert sorted(path.name for path in (suite.path / "kept").iterdir()) == [f"{name[:-5]}fails", name]


@needs_kvm
@pytest.mark.skipif(importlib.util.find_spec("xdist") is None, reason="pytest-xdist is not installed")
def test_under_xdist(suite: pytest.Pytester) -> None:
    suite.makepyfile(test_a=SUITE, test_b=FAILING, test_c=SUITE)
    result = suite.runpytest_subprocess("-n2", "--xen-keep=kept", "--junitxml=report.xml")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*console of guest (running)*", "ready"])
    assert len(list((suite.path / "kept").iterdir())) == 3
    assert "console of guest" in (suite.path / "report.xml").read_text()


LABGRID = """
targets:
  main:
    resources: {}
    drivers: {}
"""
WITH_OTHERS = """
import pytest

def test_others_have_their_fixtures(dut, target, xen_host):
    assert target.name == "main"
    dut.write("to nobody")

@pytest.mark.xen_guest(kernel="talker", memory=32, timeout=60)
def test_all_at_once(dut, target, xen_guest):
    assert xen_guest.console.expect("ready")
"""


@needs_kvm
@pytest.mark.skipif(
    not os.environ.get("XENPY_TEST_SLOW"),
    reason="labgrid and pytest-embedded are installed for it, from PyPI: XENPY_TEST_SLOW=1 runs it",
)
def test_beside_labgrid_and_pytest_embedded(suite: pytest.Pytester) -> None:
    environment = suite.path / "environment"
    venv.create(environment, with_pip=True)
    python = str(environment / "bin" / "python")
    wanted = ["-e", str(Path(xenpy.__file__).parents[1]), "labgrid", "pytest-embedded", "pytest-xdist"]
    subprocess.run([python, "-m", "pip", "install", "-q", *wanted], check=True, capture_output=True, timeout=600)
    (suite.path / "lab.yaml").write_text(LABGRID)
    suite.makeini("[pytest]\n")  # their warnings are theirs
    suite.makepyfile(test_a=SUITE, test_b=FAILING, test_c=WITH_OTHERS)
    for workers in ([], ["-n2"]):
        options = ["--lg-env", "lab.yaml", "--junitxml=report.xml", "--xen-keep=kept", *workers]
        result = suite.run(python, "-m", "pytest", *options, timeout=300)
        result.assert_outcomes(passed=3, failed=1)
        result.stdout.fnmatch_lines(["*console of guest (running)*", "*what guest last asked of Xen*"])
        assert "what guest last asked of Xen" in (suite.path / "report.xml").read_text()
        assert len(list((suite.path / "kept").iterdir())) == 3


@needs_kvm
def test_ctrl_c_leaves_nothing(suite: pytest.Pytester) -> None:
    path = suite.makepyfile(
        "import pytest\n"
        "@pytest.mark.xen_guest(kernel='ender', cmdline='spin')\n"
        "def test_forever(xen_guest):\n"
        "    xen_guest.emergency.expect('spin')\n"
        "    raise KeyboardInterrupt\n"
    )
    result = suite.run(sys.executable, "-m", "pytest", path, timeout=60)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert "Exception ignored" not in result.stderr.str()


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ("xen_guest()", "no guest is chosen"),
        ("xen_guest('a', 'b')", "takes one argument"),
        ("xen_guest('none.cfg')", "none.cfg: cannot read"),
        ("xen_guest(kernel='none')", "kernel='*none': key 'kernel': cannot read"),
    ],
)
@needs_kvm
def test_wrong_markers_are_errors_in_one_line(suite: pytest.Pytester, marker: str, message: str) -> None:
    suite.makepyfile(f"import pytest\n@pytest.mark.{marker}\ndef test_it(xen_guest): pass\n")
    result = suite.runpytest_subprocess()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"xen_guest: *{message}*"])
    assert "During handling" not in result.stdout.str()


def test_options_that_name_no_file_are_refused(pytester: pytest.Pytester) -> None:
    assert pytester.runpytest_subprocess("--xen-trace=many").ret == pytest.ExitCode.USAGE_ERROR
    for option in ("--xen-cfg", "--xen-kernel"):
        result = pytester.runpytest_subprocess(option, "nowhere")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([f"*{option}: there is no file nowhere"])


NO_KVM = """
import xenpy.kvm.system as system
from xenpy import HostError

def refuse(*args, **kwargs):
    raise HostError("/dev/kvm is not there")

system.Kvm.__init__ = refuse
"""


def test_without_kvm_tests_are_skipped_unless_it_is_asked_for(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(NO_KVM)
    pytester.makepyfile("def test_it(xen_guest): pass")
    result = pytester.runpytest_subprocess("-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*/dev/kvm is not there"])
    pytester.runpytest_subprocess("--xen-host=kvm").assert_outcomes(errors=1)


def test_a_suite_without_guests_pays_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import sys

        def test_it(request):
            assert not [name for name in sys.modules if name.startswith(("xenpy.domain", "xenpy.kvm", "xenpy.host"))]
            assert not [name for name in request.fixturenames if name.startswith("xen_")]
        """)
    pytester.runpytest_subprocess("-Werror").assert_outcomes(passed=1)


def test_it_is_found_and_can_be_turned_off(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(xen_host): pass")
    fixtures = pytester.runpytest_subprocess("--fixtures", "-p", "no:cacheprovider")
    for name in ("xen_guest", "xen_host"):
        fixtures.stdout.fnmatch_lines([f"{name}*"])
    pytester.runpytest_subprocess("--markers").stdout.fnmatch_lines(
        ["@pytest.mark.xen_guest(cfg=None, [*][*]settings): *"]
    )
    pytester.runpytest_subprocess("-p", "no:xenpy").assert_outcomes(errors=1)


def test_asking_for_help_starts_no_emulated_host(tmp_path: Path) -> None:
    for option in ("--help", "--version"):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "--xen-host=emulated", option],
            capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0
        assert "emulated host" not in done.stderr
