"""Commands over a console, against real shells on real terminals: what comes back is what the command wrote, and its exit code."""

from __future__ import annotations

import shutil
import threading
import time
from typing import TYPE_CHECKING

import pytest
from api_rig import shell_console

from xenpy.api.errors import GuestEnded, Timeout
from xenpy.api.shell import MAX_COMMAND, Shell
from xenpy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xenpy.api.console import Console

_SHELLS = {
    "sh": ("sh", "-i"),
    "ash": ("busybox", "sh", "-i"),  # edits lines itself, and echoes them whatever stty says
    "bash": ("bash", "--norc", "-i"),
    "bash without editing": ("bash", "--norc", "--noediting", "-i"),
}


@pytest.fixture(params=_SHELLS, ids=str)
def console(request: pytest.FixtureRequest) -> Iterator[Console]:
    argv = _SHELLS[request.param]
    if shutil.which(argv[0]) is None:
        pytest.skip(f"{argv[0]} is not installed")
    with shell_console(*argv) as console:
        yield console


@pytest.mark.parametrize(
    ("command", "code", "output"),
    [
        ("echo one; echo two", 0, "one\ntwo\n"),
        ("false", 1, ""),
        ("exit 42", 42, ""),
        ("printf no-newline", 0, "no-newline"),
        ("printf '%s|' 'a  b' \"c'd\" '\\n' '%d'", 0, "a  b|c'd|\\n|%d|"),
        ("echo \"x\" >&2; printf 'a\\tb\\n'", 0, "x\na\tb\n"),
        ("cat", 0, ""),
        ("for i in 1 2\ndo\n\techo $i\ndone", 0, "1\n2\n"),
        ("echo é!; echo $?", 0, "é!\n0\n"),
        ("exit 255", 255, ""),
        ("true\n\n", 0, ""),
    ],
)
def test_output_and_exit_code_are_the_commands(console: Console, command: str, code: int, output: str) -> None:
    done = Shell(console).run(command, 20)
    assert (done.returncode, done.stdout) == (code, output)


def test_commands_follow_one_another(console: Console) -> None:
    shell = Shell(console)
    for number in range(8):
        assert shell.run(f"echo {number}; exit {number}", 20).returncode == number
    assert shell.run("seq 5000", 20).stdout == "".join(f"{number}\n" for number in range(1, 5001))


def test_a_broken_command_breaks_nothing(console: Console) -> None:
    shell = Shell(console)
    for command in ("echo 'open", "echo $(", "if true; then", ")", "no-such-command-here"):
        assert shell.run(command, 20).returncode != 0
    assert shell.run("echo well", 20).stdout == "well\n"


@pytest.mark.parametrize("letters", ["abcdefghijklmnopqrstuvwxyz", "é\t%\\a\n"], ids=["plain", "special"])
def test_a_long_command_arrives_whole(console: Console, letters: str) -> None:
    text = letters * (6000 // len(letters)) + "\t\n'\"\\$`"
    escaped = text.replace("'", "'\\''")
    done = Shell(console).run(f"printf %s '{escaped}'", 20)
    assert done.stdout == text


def test_nothing_of_an_earlier_command_leaks_into_the_next(console: Console) -> None:
    shell = Shell(console)
    shell.run("(sleep 0.2; echo late) & echo now", 20)
    time.sleep(0.4)
    assert shell.run("echo next", 20).stdout == "next\n"


def test_a_command_out_of_time_is_interrupted(console: Console) -> None:
    shell = Shell(console)
    shell.run("true", 20)
    with pytest.raises(Timeout, match="no end of 'echo going; sleep 600'"):
        shell.run("echo going; sleep 600", 0.5)
    assert shell.run("echo again", 20).stdout == "again\n"


def test_a_shell_may_start_late() -> None:
    with shell_console("sh", "-c", "sleep 2.5; exec sh -i") as console:
        assert Shell(console).run("echo here", 20).stdout == "here\n"


def test_no_shell_is_a_timeout_that_says_so() -> None:
    with shell_console("sleep", "600") as console, pytest.raises(Timeout, match="no shell on the console within"):
        Shell(console).run("true", 0.5)


def test_an_end_in_the_middle_is_not_waited_for() -> None:
    with shell_console("sh", "-i") as console, pytest.raises(GuestEnded, match="without end of 'kill -9"):
        Shell(console).run("kill -9 $$", 20)


@pytest.mark.parametrize("command", ["nul\0", "x" * (MAX_COMMAND + 1)])
def test_what_cannot_be_typed_is_refused(command: str) -> None:
    with shell_console("sh", "-i") as console, pytest.raises(ConfigError, match="at most"):
        Shell(console).run(command, 1)


def test_threads_take_turns() -> None:
    results: dict[int, str] = {}
    with shell_console("sh", "-i") as console:
        shell = Shell(console)

        def run(number: int) -> None:
            results[number] = shell.run(f"echo {number}", 20).stdout

        threads = [threading.Thread(target=run, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == {number: f"{number}\n" for number in range(5)}
