from __future__ import annotations

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenpy.cpio import Archive

HEADER_SIZE = 110
FIELDS = (
    *("inode", "mode", "uid", "gid", "links", "mtime", "size"),
    *("major", "minor", "device_major", "device_minor", "name_size", "check"),
)


def parse(data: bytes) -> dict[str, tuple[dict[str, int], bytes]]:
    """Read an archive as the kernel does: headers at multiples of four, names ended by NUL, a trailer."""
    entries: dict[str, tuple[dict[str, int], bytes]] = {}
    position = 0
    while True:
        assert position % 4 == 0
        assert data[position : position + 6] == b"070701"
        header = data[position + 6 : position + HEADER_SIZE]
        fields = {name: int(header[8 * i : 8 * i + 8], 16) for i, name in enumerate(FIELDS)}
        name_end = position + HEADER_SIZE + fields["name_size"]
        assert data[name_end - 1] == 0
        name = data[position + HEADER_SIZE : name_end - 1].decode()
        start = (name_end + 3) // 4 * 4
        end = start + fields["size"]
        if name == "TRAILER!!!":
            assert end == len(data)
            return entries
        entries[name] = (fields, data[start:end])
        position = (end + 3) // 4 * 4


def test_each_kind_of_entry_is_there_with_its_mode_and_content() -> None:
    archive = Archive()
    archive.directory("proc", mode=0o555)
    archive.file("bin/tool", b"\x7fELF", mode=0o755)
    archive.symlink("bin/sh", "tool")
    archive.character_device("dev/console", 5, 1)
    entries = parse(archive.to_bytes())
    assert list(entries) == ["proc", "bin", "bin/tool", "bin/sh", "dev", "dev/console"]
    assert entries["proc"][0]["mode"] == stat.S_IFDIR | 0o555
    assert entries["bin/tool"] == (entries["bin/tool"][0], b"\x7fELF")
    assert entries["bin/tool"][0]["mode"] == stat.S_IFREG | 0o755
    assert entries["bin/sh"][0]["mode"] == stat.S_IFLNK | 0o777
    assert entries["bin/sh"][1] == b"tool"
    console = entries["dev/console"][0]
    assert (console["mode"], console["device_major"], console["device_minor"]) == (stat.S_IFCHR | 0o600, 5, 1)


def test_inodes_differ_because_the_kernel_takes_equal_ones_for_hard_links() -> None:
    archive = Archive()
    for number in range(5):
        archive.file(f"f{number}", b"")
    inodes = [fields["inode"] for fields, _ in parse(archive.to_bytes()).values()]
    assert len(set(inodes)) == len(inodes)


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_contents_of_any_size_survive(contents: list[bytes]) -> None:
    archive = Archive()
    for number, content in enumerate(contents):
        archive.file("d" * number + f"/{number}", content)
    files = [content for fields, content in parse(archive.to_bytes()).values() if stat.S_ISREG(fields["mode"])]
    assert files == contents


def test_absolute_paths_are_inside_the_archive() -> None:
    archive = Archive()
    archive.file("/etc/x", b"")
    assert list(parse(archive.to_bytes())) == ["etc", "etc/x"]


@pytest.mark.parametrize("path", ["../x", "a/../../x", "a\0b", "/", ""])
def test_a_path_that_is_none_inside_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="archive"):
        Archive().file(path, b"")


def test_a_path_twice_is_refused() -> None:
    archive = Archive()
    archive.file("a", b"")
    with pytest.raises(ValueError, match="already"):
        archive.symlink("/a", "b")
