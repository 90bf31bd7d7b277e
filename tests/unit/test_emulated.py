from __future__ import annotations

import ast
import importlib.resources
import itertools
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpy.emulated import connection, machine, protocol
from xenpy.emulated.machine import Channel, MachineOptions, Share
from xenpy.errors import ConfigError, HostError

if TYPE_CHECKING:
    from collections.abc import Iterator

WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
SHOW = "import os, sys; print(ascii((sys.argv[1:], dict(os.environ), os.getcwd())))"


@given(arguments=st.lists(WORDS, max_size=4), values=st.lists(WORDS, max_size=4))
def test_a_shell_makes_the_same_arguments_environment_and_directory_of_the_text(
    arguments: list[str], values: list[str]
) -> None:
    environment = {"LC_ALL": "C.UTF-8", **{f"X{number}": value for number, value in enumerate(values)}}
    text = protocol.command_text([sys.executable, "-S", "-c", SHOW, *arguments], environment, Path("/usr"))
    shown = subprocess.run(["sh"], input=text, capture_output=True, check=True).stdout
    expected = (arguments, {**environment, protocol.INSIDE: "1"}, "/usr")
    assert ast.literal_eval(shown.decode()) == expected


def test_a_program_is_found_in_the_given_path_and_nowhere_else(tmp_path: Path) -> None:
    tool = tmp_path / "ls"
    tool.touch(mode=0o755)
    text = protocol.command_text(["ls", "-l"], {"PATH": str(tmp_path)}, Path("/"))
    assert f"{tool} -l".encode() in text
    with pytest.raises(ConfigError, match="nosuch: not found in PATH"):
        protocol.command_text(["nosuch"], {"PATH": str(tmp_path)}, Path("/"))


@pytest.mark.parametrize("argv", [[], ["/bin/echo", "a\0b"]])
def test_what_cannot_be_a_command_is_a_config_error(argv: list[str]) -> None:
    with pytest.raises(ConfigError):
        protocol.command_text(argv, {}, Path("/"))


def test_the_default_environment_leaves_out_what_only_works_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", "/run/agent")
    monkeypatch.setenv("XENPY_CACHE", "/cache")
    monkeypatch.setenv("LC_TIME", "C")
    environment = protocol.default_environment()
    assert "SSH_AUTH_SOCK" not in environment
    assert environment["XENPY_CACHE"] == "/cache"
    assert environment["LC_TIME"] == "C"
    assert "PATH" in environment


def test_a_request_states_the_size_of_its_body() -> None:
    assert protocol.request("size", 24, 80) == b"size 24 80\n"
    assert protocol.request("run", "m", "/dev/null", body=b"a\nb") == b"run 3 m /dev/null\na\nb"


@given(
    data=st.binary(max_size=60),
    cuts=st.lists(st.integers(0, 90), max_size=6),
    extra=st.sampled_from([b"", b"\x1e", b"\x1eab"]),
)
def test_a_marked_stream_passes_all_before_the_mark_however_it_is_cut(
    data: bytes, cuts: list[int], extra: bytes
) -> None:
    mark = protocol.new_mark()
    data = data + extra + mark[:7]  # what looks like a mark for a while
    passed: list[bytes] = []
    stream = protocol.MarkedStream(mark, passed.append)
    whole = data + mark
    edges = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    for start, end in itertools.pairwise(edges):
        assert not stream.ended or start == end
        stream.feed(whole[start:end])
    assert stream.ended
    assert b"".join(passed) == data
    assert all(passed)


def test_a_marked_stream_holds_back_nothing_that_cannot_be_a_mark() -> None:
    passed: list[bytes] = []
    stream = protocol.MarkedStream(b"\x1eMARK", passed.append)
    stream.feed(b"prompt$ ")
    assert passed == [b"prompt$ "]
    stream.feed(b"\x1eMA")
    stream.feed(b"X")
    assert b"".join(passed) == b"prompt$ \x1eMAX"
    assert not stream.ended


def test_the_machine_has_every_channel_and_share(tmp_path: Path) -> None:
    odd = tmp_path / "a,b c"
    odd.mkdir()
    options = MachineOptions(memory=1024, cpus=2, writable=(odd,))
    descriptors = {channel: 10 + channel for channel in Channel}
    command = machine.qemu_command("qemu", Path("/k"), Path("/i"), options, descriptors)
    text = " ".join(command)
    for channel, descriptor in descriptors.items():
        assert f"socket,id=channel{channel.value},fd={descriptor} " in text
    assert "path=/,mount_tag" not in text
    assert "local,id=root,path=/,security_model=none,multidevs=remap,readonly=on" in command
    assert f"local,id=share0,path={tmp_path}/a,,b c,security_model=none,multidevs=remap" in command
    assert command[command.index("-smp") + 1] == "2"
    assert command[command.index("-m") + 1] == "1024"


def test_only_a_directory_below_the_root_can_be_shared(tmp_path: Path) -> None:
    for path in (Path("/"), tmp_path / "absent"):
        with pytest.raises(HostError, match="only a directory below the root"):
            MachineOptions(writable=(path,)).shares()


def test_writable_shares_are_mounted_where_they_are_and_the_root_is_not() -> None:
    shares = [Share(Path("/"), "root", writable=False), Share(Path("/a b"), "share0", writable=True)]
    text = protocol.setup_text(shares).decode()
    assert "share0 '/a b'" in text
    assert "root" not in text
    subprocess.run(["sh", "-n"], input=text.encode(), check=True)


def test_without_qemu_the_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="apt install qemu-system-x86"):
        machine.find_qemu()


@pytest.mark.parametrize("name", ["init.sh", "agent.sh"])
def test_the_scripts_inside_are_sh(name: str) -> None:
    script = importlib.resources.files("xenpy.emulated").joinpath(name).read_bytes()
    subprocess.run(["sh", "-n"], input=script, check=True)


@pytest.fixture
def inner_ends() -> Iterator[dict[Channel, socket.socket]]:
    """The ends of the channels that QEMU has."""
    ends: dict[Channel, socket.socket] = {}
    yield ends
    for end in ends.values():
        end.close()


@contextmanager
def fake_machine(script: str, inner_ends: dict[Channel, socket.socket]) -> Iterator[machine.Machine]:
    """Run a shell script in QEMU's place."""
    ours = {}
    for channel in Channel:
        ours[channel], inner_ends[channel] = socket.socketpair()
    fake = machine.Machine(["sh", "-c", script], ours, [end.fileno() for end in inner_ends.values()])
    try:
        yield fake
    finally:
        fake.close()


def wait_forever(fake: machine.Machine) -> None:
    link = connection.Connection(fake)
    try:
        link.wait(lambda: False, timeout=60)
    finally:
        link.close()


def test_a_machine_that_dies_is_reported_with_its_last_words_but_no_backtrace(
    inner_ends: dict[Channel, socket.socket],
) -> None:
    script = """
        echo 'Kernel panic: no disk'
        echo "x: warning: TCG doesn't support requested feature: y"
        echo 'Call Trace:'
        echo ' ? srso'
    """
    with fake_machine(script, inner_ends) as fake, pytest.raises(HostError, match="ended unexpectedly") as caught:
        wait_forever(fake)
    assert str(caught.value).endswith(":\n  Kernel panic: no disk")


def test_an_agent_that_never_ends_its_line_is_cut_off(inner_ends: dict[Channel, socket.socket]) -> None:
    with fake_machine("sleep 100", inner_ends) as fake:
        inner_ends[Channel.CONTROL].sendall(bytes(connection.LINE_LIMIT + 1))
        with pytest.raises(HostError, match="nonsense"):
            wait_forever(fake)


def test_lines_and_output_come_in_any_pieces(inner_ends: dict[Channel, socket.socket]) -> None:
    with fake_machine("sleep 100", inner_ends) as fake:
        link = connection.Connection(fake)
        output: list[bytes] = []
        link.sinks[Channel.STDOUT] = output.append
        inner_ends[Channel.STDERR].sendall(b"nobody asked for it")
        for piece in (b"rea", b"dy\ndo", b"ne 0\n"):
            inner_ends[Channel.STDOUT].sendall(piece)
            inner_ends[Channel.CONTROL].sendall(piece)
            assert not link.wait(lambda: False, timeout=0.1)
        assert link.lines == ["ready", "done 0"]
        assert b"".join(output) == b"ready\ndone 0\n"
        link.close()


def test_closing_ends_the_process_and_its_channels(inner_ends: dict[Channel, socket.socket]) -> None:
    with fake_machine("sleep 100", inner_ends) as fake:
        assert Path(f"/proc/{fake.pid}").exists()
    assert not Path(f"/proc/{fake.pid}").exists()
    assert all(channel.fileno() == -1 for channel in fake.channels.values())
