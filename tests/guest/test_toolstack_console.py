"""Consoles of guests by the xl-shaped commands: whoever looks, whenever, sees every byte."""

from __future__ import annotations

import os
import signal
import termios
import threading

from toolstack_rig import TIMEOUT_S, Toolstack, until


def test_every_viewer_sees_every_byte(tools: Toolstack) -> None:
    tools.create("talker", "-p")
    lines = [b"%06d " % number * 100 for number in range(60)]
    expected = b"ready\n" + b"".join(b"[%s]\n" % line for line in lines)
    with tools.viewer("talker") as early, tools.viewer("talker") as typist:
        tools.ok("unpause", "talker")
        out: dict[str, bytes] = {}
        assert typist.stdin is not None
        typist.stdin.write(b"".join(line + b"\n" for line in lines))
        typist.stdin.flush()
        reader = threading.Thread(target=lambda: out.update(typist=typist.communicate(timeout=TIMEOUT_S)[0]))
        watcher = threading.Thread(target=lambda: out.update(early=early.communicate(timeout=TIMEOUT_S)[0]))
        watcher.start()
        with tools.viewer("talker") as late:
            assert late.stdout is not None
            seen = late.stdout.read(len(expected))
            assert seen == expected
            reader.start()  # which closes the typist's stdin: its console goes on
            assert late.stdin is not None
            late.stdin.write(b"bye\n")
            late.stdin.flush()
            assert late.stdout.read() == b""
            assert late.wait(TIMEOUT_S) == 0
        reader.join()
        watcher.join()
        assert out == {"typist": expected, "early": expected}
        assert (typist.returncode, early.returncode) == (0, 0)
    assert tools.listed() == {}


def test_a_viewer_that_is_stopped_misses_nothing(tools: Toolstack) -> None:
    tools.create("talker")
    with tools.viewer("talker") as sleeper:
        assert sleeper.stdout is not None
        assert sleeper.stdout.read(6) == b"ready\n"
        sleeper.send_signal(signal.SIGSTOP)
        line = b"x" * 4000
        tools.xl("console", "talker", stdin=(line + b"\n") * 15 + b"bye\n")
        assert tools.listed() == {}
        sleeper.send_signal(signal.SIGCONT)
        assert sleeper.stdout.read() == b"[%s]\n" % line * 15


def test_a_console_in_the_foreground(tools: Toolstack) -> None:
    done = tools.xl("create", "-qF", "-c", *tools.settings("front"), stdin=b"hello\nbye\n")
    assert (done.code, done.out, done.err) == (0, "ready\n[hello]\n", "")
    done = tools.xl("create", "-qc", *tools.settings("back"), stdin=b"hello\nbye\n")
    assert (done.code, done.out, done.err) == (0, "ready\n[hello]\n", "")


def test_a_paused_guest_stands_still(tools: Toolstack) -> None:
    tools.create("x")
    with tools.viewer("x") as viewer:
        assert viewer.stdin is not None
        assert viewer.stdout is not None
        assert viewer.stdout.read(6) == b"ready\n"
        tools.ok("pause", "x")
        viewer.stdin.write(b"hello\n")
        viewer.stdin.flush()
        assert tools.listed()["x"][3] == "--p---"
        os.set_blocking(viewer.stdout.fileno(), False)
        assert viewer.stdout.read() is None
        os.set_blocking(viewer.stdout.fileno(), True)
        tools.ok("unpause", "x")
        assert viewer.stdout.read(8) == b"[hello]\n"


def test_the_console_on_a_terminal(tools: Toolstack) -> None:
    tools.create("x")
    ours, theirs = os.openpty()
    before = termios.tcgetattr(theirs)
    with tools.popen("console", "x", stdin=theirs, stdout=theirs) as process:
        assert os.read(ours, 6) == b"ready\n"
        os.write(ours, b"hello\n\x1drest")
        assert process.wait(TIMEOUT_S) == 0
    assert termios.tcgetattr(theirs) == before
    with tools.popen("create", "-qFc", *tools.settings("y"), stdin=theirs, stdout=theirs) as process:
        assert os.read(ours, 6) == b"ready\n"
        os.write(ours, b"\x1d")
        assert process.stderr is not None
        until(lambda: termios.tcgetattr(theirs) == before, "terminal that is restored")
        assert sorted(tools.listed()) == ["x", "y"]
        tools.xl("console", "y", stdin=b"bye\n")
        assert process.wait(TIMEOUT_S) == 0
    os.close(ours)
    os.close(theirs)
    with tools.viewer("x") as viewer:
        assert viewer.stdout is not None
        assert viewer.stdout.read(14) == b"ready\n[hello]\n"


def test_viewers_stay_when_the_guest_starts_anew(tools: Toolstack) -> None:
    tools.create("x", "-p", settings=("on_poweroff=restart",))
    with tools.viewer("x") as viewer:
        assert viewer.stdout is not None
        assert viewer.stdin is not None
        tools.ok("unpause", "x")
        assert viewer.stdout.read(6) == b"ready\n"
        with tools.popen("reboot", "-w", "x") as waiting:
            assert waiting.stderr is not None
            assert waiting.stderr.readline() == b"Rebooting domain 1\n"
            assert waiting.stderr.readline() == b"Waiting for 1 domain\n"
            viewer.stdin.write(b"bye\n")
            viewer.stdin.flush()
            assert waiting.wait(TIMEOUT_S) == 0
        assert viewer.stdout.read(6) == b"ready\n"
        assert tools.ok("domid", "x") == "2\n"
        tools.ok("destroy", "x")
        assert viewer.wait(TIMEOUT_S) == 0
