from __future__ import annotations

import gzip
import io
import lzma
import os
import sys
import tarfile
import threading
import zipfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpy import packages
from xenpy.cache import cache_directory, locked, publish_bytes, published
from xenpy.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def tar(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size, member.mode = len(content), 0o755
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def deb(member: str, data: bytes) -> bytes:
    def entry(name: str, content: bytes) -> bytes:
        header = f"{name:16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        return header + content + b"\n" * (len(content) % 2)

    return b"!<arch>\n" + entry("debian-binary", b"2.0\n") + entry("control.tar.xz", b"odd") + entry(member, data)


def unpack(path: Path, data: bytes, wanted: Callable[[str], bool] = lambda _: True) -> Path:
    package = path / "p.deb"
    package.write_bytes(data)
    packages.unpack_deb(package, path / "out", wanted)
    return path / "out"


@pytest.mark.parametrize(("suffix", "compress"), [("", bytes), (".xz", lzma.compress), (".gz", gzip.compress)])
def test_a_package_gives_the_wanted_files(tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]) -> None:
    content = tar({"boot/vmlinuz": b"kernel", "usr/share/doc/x": b"no"})
    out = unpack(tmp_path, deb(f"data.tar{suffix}", compress(content)), lambda path: path.startswith("boot/"))
    assert [path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()] == ["boot/vmlinuz"]
    assert (out / "boot/vmlinuz").read_bytes() == b"kernel"
    assert (out / "boot/vmlinuz").stat().st_mode & 0o777 == 0o755


def test_a_package_packed_with_zstd_unpacks(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    out = unpack(tmp_path, deb("data.tar.zst", zstandard.ZstdCompressor().compress(tar({"a": b"1"}))))
    assert (out / "a").read_bytes() == b"1"


def test_a_file_that_would_land_elsewhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="leaves the package"):
        unpack(tmp_path, deb("data.tar", tar({"../evil": b"x"})))
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"!<arch>\n",
        b"not an archive",
        deb("data.tar.xz", b"\xfd7zXZ\0 broken"),
        deb("data.tar.rar", b""),
        deb("x", b""),
    ],
)
def test_a_damaged_package_is_named(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(HostError, match=r"p\.deb: damaged"):
        unpack(tmp_path, data)


@given(data=st.binary(max_size=200), cut=st.integers(0, 300))
def test_arbitrary_bytes_give_an_error_at_worst(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, cut: int
) -> None:
    whole = deb("data.tar.xz", lzma.compress(tar({"a": b"1"})))
    for content in (data, b"!<arch>\n" + data, whole[:cut] + data):
        try:
            unpack(tmp_path_factory.mktemp("deb"), content)
        except HostError as error:
            if "damaged" not in str(error):
                raise


def test_versions_sort_as_numbers() -> None:
    names = ["linux-image-6.1.0-9-cloud", "linux-image-6.1.0-56-cloud", "linux-image-6.1.0-47-cloud"]
    assert max(names, key=packages.version_key) == "linux-image-6.1.0-56-cloud"


@pytest.fixture
def fake_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for apt whose answers are files: NAMES it knows, DEBS it can download, UPDATED lists."""
    tools = tmp_path / "tools"
    tools.mkdir()
    state = tmp_path / "state"
    state.mkdir()
    (state / "names").write_text("k-6.1.9\nk-6.1.10\nk-6.1.11\nkother\n")
    script = f"""#!{sys.executable}
import pathlib, sys
state = pathlib.Path({str(state)!r})
private = any("Dir::State::Lists" in word for word in sys.argv)
debs = (state / ("debs-private" if private else "debs"))
known = debs.read_text().split() if debs.exists() else []
if "pkgnames" in sys.argv:
    print((state / "names").read_text())
elif "update" in sys.argv:
    (state / "updated").touch()
    if not (state / "online").exists():
        sys.exit("E: no route to host")
elif sys.argv[-1] not in known:
    sys.exit("E: Unable to locate package " + sys.argv[-1])
elif "--print-uris" in sys.argv:
    print("'somewhere'")
else:
    pathlib.Path(sys.argv[-1] + "_1_amd64.deb").write_text("deb")
"""
    for name in ("apt-get", "apt-cache"):
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("XENPY_CACHE", str(tmp_path / "cache"))
    return state


def fetch(path: Path, pattern: str = r"k-6\.1\.[0-9]+") -> str:
    target = path / "fetched"
    target.mkdir()
    return packages.fetch_debian(pattern, target).name


def test_the_newest_package_on_offer_is_taken_without_refreshing(tmp_path: Path, fake_tools: Path) -> None:
    (fake_tools / "debs").write_text("k-6.1.9 k-6.1.10")
    assert fetch(tmp_path) == "k-6.1.10_1_amd64.deb"
    assert not (fake_tools / "updated").exists()


def test_stale_lists_are_replaced_by_private_ones(tmp_path: Path, fake_tools: Path) -> None:
    (fake_tools / "debs-private").write_text("k-6.1.9 k-6.1.11")
    (fake_tools / "online").touch()
    assert fetch(tmp_path) == "k-6.1.11_1_amd64.deb"


def test_a_package_that_nobody_offers_is_named(tmp_path: Path, fake_tools: Path) -> None:
    (fake_tools / "online").touch()
    with pytest.raises(HostError, match=r"Debian package k-6.*do not offer it"):
        fetch(tmp_path)


def test_offline_the_package_and_apts_reason_are_named(tmp_path: Path, fake_tools: Path) -> None:
    with pytest.raises(HostError, match=r"k-6.*no route to host"):
        fetch(tmp_path)


def test_without_apt_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HostError, match="package `apt`"):
        fetch(tmp_path)


def fake_python(path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    script = path / "python"
    script.write_text(f"#!{sys.executable}\nimport sys, pathlib\n{body}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))


def test_a_wheel_is_downloaded_and_its_wanted_files_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("p/images/disk", b"disk")
        archive.writestr("p/__init__.py", b"")
    fake_python(
        tmp_path,
        monkeypatch,
        f"pathlib.Path(sys.argv[sys.argv.index('--dest') + 1], 'p-1.whl').write_bytes({wheel.getvalue()!r})",
    )
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    packages.unpack_wheel(packages.fetch_wheel("p", fetched), tmp_path / "out", lambda path: "/images/" in path)
    assert [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()] == ["disk"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("sys.exit('No module named pip')", "ensurepip"),
        ("sys.exit('ERROR: No matching distribution found for p')", "PyPI package p: ERROR: No matching"),
        ("", "PyPI package p: exit code 0"),
    ],
)
def test_a_wheel_that_does_not_come_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, message: str
) -> None:
    fake_python(tmp_path, monkeypatch, body)
    (tmp_path / "fetched").mkdir()
    with pytest.raises(HostError, match=message):
        packages.fetch_wheel("p", tmp_path / "fetched")


def test_a_damaged_wheel_is_named(tmp_path: Path) -> None:
    wheel = tmp_path / "p.whl"
    wheel.write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(HostError, match=r"p\.whl: damaged"):
        packages.unpack_wheel(wheel, tmp_path / "out", lambda _: True)


class TestCache:
    @pytest.mark.parametrize(
        ("variables", "expected"),
        [
            ({"XENPY_CACHE": "x", "XDG_CACHE_HOME": "y"}, "x/a"),
            ({"XDG_CACHE_HOME": "y"}, "y/xenpy/a"),
            ({"HOME": "z"}, "z/.cache/xenpy/a"),
        ],
    )
    def test_environment_says_where_it_is(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
    ) -> None:
        for name in ("XENPY_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, str(tmp_path / value))
        assert cache_directory("a") == tmp_path / expected
        assert (tmp_path / expected).is_dir()

    def test_a_place_that_cannot_be_made_is_an_error_with_the_remedy(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("XENPY_CACHE", str(tmp_path / "file/below"))
        with pytest.raises(HostError, match="set XENPY_CACHE"):
            cache_directory("a")

    def test_a_failure_leaves_neither_half_a_directory_nor_temporary_files(self, tmp_path: Path) -> None:
        def half_made() -> None:
            with published(tmp_path / "target") as made:
                (made / "half").touch()
                raise KeyError

        with pytest.raises(KeyError):
            half_made()
        assert list(tmp_path.iterdir()) == []

    def test_an_existing_directory_is_replaced_whole(self, tmp_path: Path) -> None:
        for name in ("old", "new"):
            with published(tmp_path / "target") as made:
                (made / name).touch()
        assert [path.name for path in tmp_path.rglob("*")] == ["target", "new"]

    def test_published_bytes_leave_nothing_else(self, tmp_path: Path) -> None:
        publish_bytes(tmp_path / "x", b"1")
        publish_bytes(tmp_path / "x", b"2")
        assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x", b"2")]

    def test_only_one_holds_the_lock(self, tmp_path: Path) -> None:
        inside = []

        def work() -> None:
            with locked(tmp_path / "x"):
                inside.append(1)
                assert len(inside) == 1
                threading.Event().wait(0.01)
                inside.pop()

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not inside
