"""Tests inside QEMU's emulation; one boot serves most of them."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from xenpy.emulated import EmulatedHost
from xenpy.emulated.machine import INSTALL_QEMU, QEMU
from xenpy.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.emulated

KVM_XEN = """
import fcntl
KVM_CHECK_EXTENSION, KVM_CAP_XEN_HVM = 0xAE03, 38
with open("/dev/kvm", "rb+", buffering=0) as kvm:
    print(fcntl.ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_XEN_HVM))
"""
PASSED_THROUGH = "import sys; from xenpy.emulated import run; sys.exit(run(sys.argv[1:]))"


@pytest.fixture(scope="module", autouse=True)
def _images() -> None:
    if shutil.which(QEMU) is None:
        pytest.skip(INSTALL_QEMU)
    from xenpy.emulated.images import host_images

    try:
        host_images()
    except HostError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared, with odd name")


@pytest.fixture(scope="module")
def host(shared: Path) -> Iterator[EmulatedHost]:
    with EmulatedHost(writable=[shared]) as host:
        yield host


def test_kvm_is_usable_and_has_xen_support(host: EmulatedHost) -> None:
    result = host.run([sys.executable, "-c", KVM_XEN])
    assert int(result.stdout) & 1


def test_output_errors_and_exit_code_are_the_commands(host: EmulatedHost) -> None:
    result = host.run(["sh", "-c", "printf 'a\\0\\r\\n'; printf 'b\\n' >&2; exit 77"])
    assert (result.returncode, result.stdout, result.stderr) == (77, b"a\0\r\n", b"b\n")


def test_every_byte_comes_through(host: EmulatedHost) -> None:
    data = os.urandom(1 << 20) + bytes(range(256))
    assert host.run(["cat"], stdin=data).stdout == data


def test_standard_files_can_be_opened_again(host: EmulatedHost) -> None:
    script = "cat /dev/stdin; echo out >/dev/stdout; echo err >/dev/stderr"
    result = host.run(["sh", "-c", script], stdin=b"in\n")
    assert (result.stdout, result.stderr) == (b"in\nout\n", b"err\n")


def test_death_by_a_signal_is_told_as_a_shell_does(host: EmulatedHost) -> None:
    assert host.run(["sh", "-c", "kill -SEGV $$"]).returncode == 128 + signal.SIGSEGV


def test_a_command_out_of_time_is_killed_with_all_it_started(host: EmulatedHost) -> None:
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        host.run(["sh", "-c", "echo so far; setsid sleep 1000 & sleep 1000"], timeout=2)
    assert caught.value.stdout == b"so far\n"
    assert b"sleep" not in host.run(["ps", "-e"]).stdout


def test_what_a_command_leaves_behind_ends_with_it(host: EmulatedHost) -> None:
    assert host.run(["sh", "-c", "setsid sleep 1000 & echo done"], timeout=60).stdout == b"done\n"
    assert b"sleep" not in host.run(["ps", "-e"]).stdout


def test_an_interrupted_run_leaves_the_host_usable(host: EmulatedHost) -> None:
    def interrupt(_signum: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 1.5)
    try:
        with pytest.raises(KeyboardInterrupt):
            host.run(["sleep", "1000"])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert host.run(["echo", "on"]).stdout == b"on\n"


def test_writable_directories_are_the_outer_ones_and_the_rest_is_not(host: EmulatedHost, shared: Path) -> None:
    (shared / "in").write_text("from outside")
    host.run(["sh", "-c", "cp in out; echo lost >../lost"], cwd=shared, check=True)
    assert (shared / "out").read_text() == "from outside"
    assert not (shared.parent / "lost").exists()


def test_a_command_sees_the_outer_files_as_they_are_when_it_starts(host: EmulatedHost, tmp_path: Path) -> None:
    file = tmp_path / "file"
    assert host.run(["cat", str(file)]).returncode == 1
    for content in ("first", "second and longer"):
        file.write_text(content)
        assert host.run(["cat", str(file)]).stdout.decode() == content
    file.unlink()
    assert host.run(["cat", str(file)]).returncode == 1


def test_a_failure_is_raised_if_asked_for(host: EmulatedHost) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        host.run(["false"], check=True)
    assert host.run(["true"], cwd=Path("/nonexistent")).returncode == 126


def test_after_the_end_the_host_says_so(shared: Path) -> None:
    with pytest.raises(HostError, match="not running"):
        EmulatedHost(writable=[shared]).run(["true"])


def test_a_host_that_loses_qemu_is_reported() -> None:
    with EmulatedHost() as host:
        os.kill(host.machine.pid, signal.SIGKILL)
        with pytest.raises(HostError, match="emulated host"):
            host.run(["true"])


def test_pipes_and_exit_code_are_passed_through() -> None:
    data = os.urandom(100_000)
    result = subprocess.run(
        [sys.executable, "-c", PASSED_THROUGH, "sh", "-c", "tee /dev/stderr; exit 5"],
        input=data,
        capture_output=True,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (5, data, data)


class Terminal:
    """A command under a pseudo-terminal, as a user has it."""

    def __init__(self, *command: str) -> None:
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.execv(sys.executable, [sys.executable, "-c", PASSED_THROUGH, *command])
        self.shown = b""

    def expect(self, pattern: bytes, timeout: float = 120) -> None:
        end = time.monotonic() + timeout
        while not (found := re.search(pattern, self.shown)):
            assert select.select([self.master], [], [], end - time.monotonic())[0], self.shown
            self.shown += os.read(self.master, 4096)
        self.shown = self.shown[found.end() :]

    def type(self, data: bytes) -> None:
        os.write(self.master, data)

    def end(self) -> int:
        """Return the exit code, having let the output flow."""
        while True:
            try:
                if not os.read(self.master, 4096):
                    break
            except OSError:  # Linux' way of saying that nobody has the other end
                break
        os.close(self.master)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_a_terminal_is_one_inside_with_size_and_interrupts() -> None:
    terminal = Terminal(
        "sh", "-c", "trap 'echo caught; exit 9' INT; stty size; tty; echo ready; while :; do sleep 1; done"
    )
    terminal.expect(rb"\d+ \d+\r\n/dev/\w+\r\nready\r\n")
    terminal.type(b"\x03")
    terminal.expect(rb"caught\r\n")
    assert terminal.end() == 9


def test_a_window_that_changes_its_size_does_so_inside() -> None:
    terminal = Terminal("sh", "-c", "trap 'stty size' WINCH; echo ready; while :; do sleep 0.2; done")
    terminal.expect(b"ready")
    subprocess.run(["stty", "rows", "41", "cols", "117"], stdin=terminal.master, check=True)
    terminal.expect(b"41 117")
    terminal.type(b"\x1d\x1d\x1d")
    assert terminal.end() == 128 + signal.SIGINT


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_qemu_ends_with_the_process_that_started_it(how: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PASSED_THROUGH, "sh", "-c", "echo ready; sleep 1000"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    with process.stdout as output:
        assert output.readline() == b"ready\n"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(how)
        process.wait()
    assert children
    wait_until_gone(children)
    assert process.returncode == (-how if how == signal.SIGKILL else 128 + how)


def test_the_machine_powers_off_when_nobody_controls_it_any_more() -> None:
    """Started from a thread, QEMU gets no parent-death signal: this is the agent's doing."""
    script = textwrap.dedent("""
        import os, threading
        from xenpy.emulated import EmulatedHost
        def work():
            host = EmulatedHost().__enter__()
            print(host.machine.pid, flush=True)
            os._exit(0)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    """)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    wait_until_gone(result.stdout.decode().split())


def wait_until_gone(pids: list[str]) -> None:
    end = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < end, f"still there: {pids}"
        time.sleep(0.05)
