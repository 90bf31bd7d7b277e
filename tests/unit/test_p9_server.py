"""The 9P server, asked by a client that is at times a bad one."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager, suppress
from struct import pack
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from p9_rig import ROOT, Client, string

from xenpy.abi.p9 import AT_REMOVEDIR, HEADER, SETATTR, T
from xenpy.config.devices import P9Config
from xenpy.devices.p9.backend import open_folder
from xenpy.devices.p9.server import Server
from xenpy.devices.p9.tree import Tree
from xenpy.errors import ConfigError, FrontendError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MSIZE = 16384
EXCL, TRUNC = 0o200, 0o1000


@contextmanager
def refused(code: int) -> Iterator[None]:
    with pytest.raises(OSError, match="request") as caught:
        yield
    assert caught.value.errno == code, errno.errorcode.get(caught.value.errno or 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text("secret")
    share = tmp_path / "share"
    share.mkdir()
    return share


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    tree = Tree(str(folder))
    server = Server(tree, MSIZE, 8)
    yield server
    server.close()
    tree.close()


@pytest.fixture
def client(server: Server) -> Client:
    return Client(server.handle)


def test_session(server: Server, client: Client) -> None:
    assert client.msize == MSIZE
    reply = client.rpc(T.VERSION, pack("<I", 8192) + string(b"9P2000.u"))
    assert reply == pack("<I", 8192) + string(b"unknown")
    with refused(errno.EBADF):  # a new session begins with nothing
        client.getattr(ROOT)
    with refused(errno.EINVAL):
        client.rpc(T.VERSION, pack("<I", 100) + string(b"9P2000.L"))
    with refused(errno.EOPNOTSUPP):
        client.rpc(30, b"")
    assert client.rpc(T.FLUSH, pack("<H", 1)) == b""


def test_files(client: Client, folder: Path) -> None:
    client.walk(ROOT, 1)
    client.create(1, b"f", mode=0o666)
    assert client.write(1, 3, b"data") == 4
    assert client.read(1, 0, 100) == b"\0\0\0data"
    assert client.read(1, 7, 100) == b""
    client.rpc(T.FSYNC, pack("<II", 1, 0))
    client.rpc(T.FSYNC, pack("<II", 1, 1))
    assert (folder / "f").read_bytes() == b"\0\0\0data"
    assert stat.S_IMODE((folder / "f").stat().st_mode) == 0o666
    assert client.getattr(1)["size"] == 7
    client.reach(2, b"f")
    with refused(errno.EBADF):
        client.read(2, 0, 1)
    client.open(2, TRUNC | 1)
    assert (folder / "f").read_bytes() == b""
    with refused(errno.EBADF):
        client.read(2, 0, 1)
    (folder / "f").write_bytes(os.urandom(2 * MSIZE))
    assert client.read(1, 5, 1 << 20) == (folder / "f").read_bytes()[5 : 5 + MSIZE - 11]
    client.walk(ROOT, 3)
    with refused(errno.EEXIST):
        client.create(3, b"f", EXCL | 2)
    client.create(3, b"f", TRUNC | 2)
    assert (folder / "f").read_bytes() == b""
    with refused(errno.EFBIG):
        client.write(3, (1 << 63) - 2, b"data")
    with refused(errno.EBADF):
        client.clunk(77)


def test_directories(client: Client, folder: Path) -> None:
    names = {f"name {number}".encode() for number in range(50)}
    for name in names:
        (folder / os.fsdecode(name)).touch()
    client.mkdir(ROOT, b"d", 0o777)
    client.symlink(ROOT, b"l", b"name 1")
    assert stat.S_IMODE((folder / "d").stat().st_mode) == 0o777
    client.walk(ROOT, 1)
    client.open(1)
    found = client.list(1)
    assert found == dict.fromkeys(names, 8) | {b".": 4, b"..": 4, b"d": 4, b"l": 10}
    client.reach(2, b"l")
    assert client.readlink(2) == b"name 1"
    client.mknod(ROOT, b"pipe", stat.S_IFIFO | 0o600)
    assert stat.S_ISFIFO((folder / "pipe").stat().st_mode)
    with refused(errno.EPERM):
        client.mknod(ROOT, b"null", stat.S_IFCHR | 0o666)
    client.link(ROOT, 2, b"l2")
    assert (folder / "l2").readlink() == (folder / "l").readlink()
    with refused(errno.EISDIR):
        client.unlinkat(ROOT, b"d")
    client.unlinkat(ROOT, b"d", AT_REMOVEDIR)
    client.rpc(T.REMOVE, pack("<I", 2))
    assert not (folder / "d").exists()
    assert not (folder / "l").is_symlink()
    assert client.list(1).keys() == names | {b".", b"..", b"l2", b"pipe"}, "a rewound directory is read anew"


def test_attributes(client: Client, folder: Path) -> None:
    (folder / "f").write_bytes(b"12345")
    client.reach(1, b"f")
    client.setattr(1, SETATTR.SIZE | SETATTR.MODE, size=2, mode=0o640)
    client.setattr(1, SETATTR.MTIME | SETATTR.MTIME_SET, mtime=1234567)
    found = client.getattr(1)
    assert (found["mode"], found["size"], found["mtime"]) == (stat.S_IFREG | 0o640, 2, 1234567)
    assert found["atime"] == int((folder / "f").stat().st_atime) > 1234567
    client.setattr(1, SETATTR.MTIME)
    assert client.getattr(1)["mtime"] > 1234567
    with refused(errno.EFBIG):
        client.setattr(1, SETATTR.SIZE, size=1 << 63)
    free = client.rpc(T.STATFS, pack("<I", 1))
    assert free[:4] == pack("<I", 0x01021997)
    assert int.from_bytes(free[8:16], "little") == os.statvfs(folder).f_blocks


def test_locks_are_granted(client: Client) -> None:
    client.walk(ROOT, 1)
    client.create(1, b"f")
    request = pack("<IBIQQI", 1, 1, 0, 0, 0, 5) + string(b"me")
    assert client.rpc(T.LOCK, request) == b"\0"
    assert client.rpc(T.GETLOCK, pack("<IBQQI", 1, 1, 7, 9, 5) + string(b"me")) == (
        pack("<BQQI", 2, 7, 9, 5) + string(b"me")
    )


def test_what_is_known_moves_with_renames(client: Client, folder: Path) -> None:
    client.mkdir(ROOT, b"a")
    client.mkdir(ROOT, b"b")
    client.reach(1, b"a")
    client.walk(1, 2)
    client.create(2, b"f")
    client.reach(3, b"a", b"f")
    client.renameat(ROOT, b"a", ROOT, b"c")
    client.reach(4, b"b")
    client.renameat(ROOT, b"c", 4, b"c")
    client.mkdir(ROOT, b"a")
    assert client.getattr(3)["size"] == 0
    client.open(3, 1)
    client.write(3, 0, b"moved")
    assert (folder / "b" / "c" / "f").read_bytes() == b"moved"
    client.walk(1, 5, b"f")
    client.rpc(T.RENAME, pack("<II", 5, ROOT) + string(b"g"))
    assert (folder / "g").read_bytes() == b"moved"
    assert client.getattr(5)["size"] == 5
    with refused(errno.EBUSY):
        client.rpc(T.RENAME, pack("<II", ROOT, 4) + string(b"g"))
    with refused(errno.EINVAL):
        client.renameat(ROOT, b"b", 1, b"b")
    client.walk(1, 6, b"..", b"..", b"..", b"g")
    assert client.getattr(6)["size"] == 5


def test_what_is_replaced_or_removed_is_gone(client: Client) -> None:
    for fid, name in ((1, b"one"), (2, b"two")):
        client.walk(ROOT, fid)
        client.create(fid, name)
        client.write(fid, 0, name)
        client.reach(fid + 10, name)
    client.renameat(ROOT, b"one", ROOT, b"two")
    with refused(errno.ENOENT):
        client.getattr(12)
    assert client.read(2, 0, 10) == b"two", "what is open lives on"
    assert client.getattr(2)["nlink"] == 0
    client.unlinkat(ROOT, b"two")
    with refused(errno.ENOENT):
        client.open(11)
    with refused(errno.ENOENT):
        client.reach(13, b"two")


def test_no_name_leads_out(client: Client, folder: Path) -> None:
    (folder / "up").symlink_to("..")
    (folder / "link").symlink_to("../secret")
    (folder / "d").mkdir()
    for name in (b"../secret", b"/etc", b".", b"", b"d/../../secret", b"nul\0"):
        with refused(errno.EINVAL):
            client.reach(1, name)
        with refused(errno.EINVAL):
            client.mkdir(ROOT, name)
        with refused(errno.EINVAL):
            client.renameat(ROOT, b"d", ROOT, name)
    assert client.walk(ROOT, 1, b"..", b"..") == client.walk(ROOT, 2, b"..") * 2
    assert client.getattr(1)["mode"] == folder.stat().st_mode
    assert len(client.walk(ROOT, 3, b"up", b"secret")) == 1
    client.reach(4, b"link")
    with refused(errno.ELOOP):
        client.open(4)
    with refused(errno.EEXIST):
        client.mkdir(ROOT, b"link")
    client.walk(ROOT, 5)
    with refused(errno.ELOOP):
        client.create(5, b"link", 2)
    client.setattr(4, SETATTR.MTIME | SETATTR.MTIME_SET, mtime=5)
    assert (folder.parent / "secret").stat().st_mtime > 5
    assert (folder / "link").lstat().st_mtime == 5
    # A directory that becomes a link on the host, while the guest stands in it.
    client.reach(6, b"d")
    (folder / "d").rmdir()
    (folder / "d").symlink_to("..")
    for attempt in (lambda: client.walk(6, 7, b"secret"), lambda: client.unlinkat(6, b"secret")):
        with refused(errno.ENOTDIR):
            attempt()
    assert (folder.parent / "secret").read_text() == "secret"


def test_pipes_and_devices_are_not_opened(client: Client, folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    client.reach(1, b"pipe")
    with refused(errno.EPERM):
        client.open(1)
    client.walk(ROOT, 2)
    with refused(errno.EPERM):
        client.create(2, b"pipe")


def test_bounds(client: Client) -> None:
    for fid in range(1, 9):
        client.walk(ROOT, fid)
        client.open(fid)
    client.walk(ROOT, 9)
    with refused(errno.ENFILE):
        client.open(9)
    client.clunk(1)
    client.open(9)
    with refused(errno.EBADF):
        client.walk(ROOT, 9)
    with refused(errno.EINVAL):
        client.walk(ROOT, 10, *[b".."] * 17)
    with refused(errno.ENAMETOOLONG):
        client.mkdir(ROOT, b"x" * 256)


def test_too_many_fids(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xenpy.devices.p9.files.MAX_FIDS", 10)
    with refused(errno.ENFILE):
        for fid in range(1, 12):
            client.walk(ROOT, fid)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_a_user_makes_is_his(client: Client, folder: Path) -> None:
    client.rpc(T.ATTACH, pack("<II", 50, 0xFFFFFFFF) + string(b"") + string(b"/") + pack("<I", 1234))
    client.mkdir(50, b"d")
    client.symlink(50, b"l", b"../secret")
    client.walk(50, 1)
    client.create(1, b"f", mode=0o4755)
    assert [(folder / name).lstat().st_uid for name in "dlf"] == [1234] * 3
    assert (folder.parent / "secret").stat().st_uid == 0
    assert stat.S_IMODE((folder / "f").stat().st_mode) == 0o4755


def test_a_request_that_ends_too_early(server: Server) -> None:
    for body in (b"", b"\x01", pack("<IIH", 0, 1, 1) + b"\xff\xff"):
        with pytest.raises(FrontendError, match="shorter than"):
            server.handle(HEADER.pack(HEADER.size + len(body), T.WALK, 1) + body)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.sampled_from([*T]), st.binary(max_size=60)), max_size=8))
def test_nonsense(server: Server, requests: list[tuple[T, bytes]]) -> None:
    Client(server.handle)
    for kind, body in requests:
        with suppress(FrontendError):
            assert server.handle(HEADER.pack(HEADER.size + len(body), kind, 7) + body)[4] in (7, kind + 1)


def test_settings_that_are_not_followed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="max-space= is not supported"):
        open_folder(P9Config("t", str(tmp_path), max_space=5))
    with pytest.raises(ConfigError, match="No such file or directory"):
        open_folder(P9Config("t", str(tmp_path / "none")))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="Not a directory"):
        open_folder(P9Config("t", str(tmp_path / "file")))
