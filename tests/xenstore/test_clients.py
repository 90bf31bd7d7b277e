"""Unmodified clients on our socket: Debian's xenstore-*, test-xenstore, xenstore-control, xen.lowlevel.xs and pyxs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Served

XEN_LIB = "usr/lib/xen-4.17"
TIMEOUT_S = 120


class Tools:
    """Runs clients against a served store."""

    def __init__(self, root: Path, served: Served) -> None:
        self.root = root
        self.store = served.store
        self.environment = served.environment

    def program(self, tool: str) -> Path:
        """Return a tool's executable; all of xenstore-* are links to one, which looks at its argv[0]."""
        private = self.root / XEN_LIB / "bin" / tool
        return private if private.exists() else self.root / "usr/bin/xenstore"

    def run(self, tool: str, *arguments: str, expected: int = 0) -> str:
        """Run a tool and return its output."""
        return self._run(self.program(tool), [tool, *arguments], expected)

    def python(self, module_path: str, script: str) -> str:
        """Run a script with a Python package out of the unpacked packages."""
        self.environment["PYTHONPATH"] = str(self.root / module_path)
        return self._run(Path(sys.executable), [sys.executable, "-c", script], 0)

    def _run(self, program: Path, command: list[str], expected: int) -> str:
        result = subprocess.run(
            command,
            executable=program,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert result.returncode == expected, result.stdout + result.stderr
        return result.stdout


@pytest.fixture
def tools(xen_root: Path, served: Served) -> Tools:
    return Tools(xen_root, served)


def test_write_read_list(tools: Tools) -> None:
    tools.run("xenstore-write", "/a/b", "value", "/a/c", "other")
    assert tools.run("xenstore-read", "/a/b", "/a/c") == "value\nother\n"
    assert tools.run("xenstore-list", "/a") == "b\nc\n"
    assert tools.store.read("/a/b") == "value"
    tools.run("xenstore-exists", "/a/b")
    tools.run("xenstore-exists", "/a/x", expected=1)
    tools.run("xenstore-read", "/a/x", expected=1)


def test_ls_shows_values_and_permissions(tools: Tools) -> None:
    tools.store.add_domain(5)
    tools.store.write("/a", "1", ["n0", "r5"])
    tools.store.write("/a/b", "2")
    assert tools.run("xenstore-ls", "-fp", "/a") == '/a/b = "2"   (n0,r5)\n'


def test_ls_of_a_directory_that_needs_parts(tools: Tools) -> None:
    for number in range(600):
        tools.store.mkdir(f"/d/child-{number:05}")
    listed = tools.run("xenstore-list", "/d").split()
    assert listed == tools.store.ls("/d")
    assert len(listed) == 600


def test_chmod_and_rm(tools: Tools) -> None:
    tools.store.add_domain(5)
    tools.store.write("/a/b/c", "1")
    tools.run("xenstore-chmod", "-r", "/a", "n0", "b5")
    assert [str(perm) for perm in tools.store.get_perms("/a/b/c")] == ["n0", "b5"]
    tools.run("xenstore-rm", "-t", "/a/b/c")
    assert not tools.store.exists("/a"), "-t tidies empty parents away"


def test_watch(tools: Tools) -> None:
    command = ["xenstore-watch", "-n", "3", "/w"]
    with subprocess.Popen(
        command,
        executable=tools.program(command[0]),
        env=tools.environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "/w\n"
            tools.store.write("/w/x", "1")
            assert process.stdout.readline() == "/w/x\n"
            tools.store.rm("/w/x")
            assert process.stdout.readline() == "/w/x\n"
            assert process.wait(TIMEOUT_S) == 0
        finally:
            process.kill()


def test_test_xenstore(tools: Tools) -> None:
    output = tools.run("test-xenstore", "-i", "20")
    assert "failed" not in output
    assert output.count("ns") >= 12


def test_test_xenstore_at_random(tools: Tools) -> None:
    assert "failed" not in tools.run("test-xenstore", "-r", "2")


def test_control(tools: Tools) -> None:
    assert tools.run("xenstore-control", "check") == "OK\n"
    assert "quota-soft\t[set <name> <val>]\n" in tools.run("xenstore-control", "help")
    tools.run("xenstore-control", "quota", "set", "nodes", "77")
    assert tools.store.quotas.nodes == 77


PYXS = """
from pyxs import Client, Router
with Client() as c:
    c[b"/a/b"] = b"value"
    assert c[b"/a/b"] == b"value"
    assert c.list(b"/a") == [b"b"]
    c.set_perms(b"/a/b", [b"r0"])
    assert c.get_perms(b"/a/b") == [b"r0"]
    c.transaction()
    c[b"/a/t"] = b"1"
    assert c.commit()
    assert c.exists(b"/a/t") and not c.exists(b"/a/u")
    assert c.get_domain_path(5) == b"/local/domain/5"
    assert c.is_domain_introduced(0)
    c.delete(b"/a/b")
    with c.monitor() as m:
        m.watch(b"/w", b"token")
        events = m.wait()
        assert next(events) == (b"/w", b"token")
        c[b"/w/x"] = b"1"
        assert next(events) == (b"/w/x", b"token")
        m.unwatch(b"/w", b"token")
print("done")
"""


def test_pyxs(tools: Tools) -> None:
    assert tools.python("usr/lib/python3/dist-packages", PYXS) == "done\n"


LOWLEVEL = """
import xen.lowlevel.xs
xs = xen.lowlevel.xs.xs()
t = xs.transaction_start()
xs.write(t, "/a/b", "value")
assert xs.transaction_end(t)
assert xs.read("", "/a/b") == b"value", xs.read("", "/a/b")
assert xs.ls("", "/a") == ["b"]
xs.set_permissions("", "/a/b", [{"dom": 0, "read": True, "write": False}])
assert xs.get_permissions("", "/a/b") == [{"dom": 0, "read": 1, "write": 0}]
xs.watch("/w", "token")
assert xs.read_watch() == ("/w", "token")
xs.write("", "/w/x", "1")
assert xs.read_watch() == ("/w/x", "token")
xs.unwatch("/w", "token")
assert xs.get_domain_path(7) == "/local/domain/7"
xs.rm("", "/a")
assert xs.read("", "/a/b") is None
print("done")
"""


def test_xen_lowlevel_xs(tools: Tools) -> None:
    folder = f"{XEN_LIB}/lib/python"
    if not list((tools.root / folder).glob(f"xen/lowlevel/xs.cpython-3{sys.version_info.minor}-*")):
        pytest.skip("Debian's xen.lowlevel.xs is for another Python")
    assert tools.python(folder, LOWLEVEL) == "done\n"


def test_a_guest_s_changes_reach_a_tool(tools: Tools) -> None:
    from xenpy.abi.xs_wire import MsgType
    from xenpy.pv.xenstore.wire import encode

    connection = tools.store.connect(5)
    tools.store.introduce(5, connection)
    tools.store.mkdir("/local/domain/5/data", ["n5"])
    connection.feed(encode(MsgType.XS_WRITE, 1, 0, b"data/x\0by the guest"))
    assert tools.run("xenstore-read", "/local/domain/5/data/x") == "by the guest\n"
