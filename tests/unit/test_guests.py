from __future__ import annotations

import gzip
import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from test_cpio import parse

from xenpy import guests, initramfs, kmodules
from xenpy.errors import ConfigError, HostError
from xenpy.guests import GuestImages
from xenpy.initramfs import ENDINGS, build_initramfs

if TYPE_CHECKING:
    from pathlib import Path

BUSYBOX = b"\x7fELF busybox"


def module(**modinfo: str) -> bytes:
    """Build an ELF object that has nothing but a .modinfo section."""
    names = b"\0.modinfo\0.shstrtab\0"
    info = b"".join(f"{key}={value}\0".encode() for key, value in modinfo.items())
    header_size, section_size = 64, 64

    def section(name: int, kind: int, offset: int, size: int) -> bytes:
        fields = ((name, 4), (kind, 4), (0, 8), (0, 8), (offset, 8), (size, 8), (0, 4), (0, 4), (1, 8), (0, 8))
        return b"".join(value.to_bytes(width, "little") for value, width in fields)

    table = header_size + len(info) + len(names)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    relocatable, x86_64 = 1, 62
    fields = (
        *((relocatable, 2), (x86_64, 2), (1, 4), (0, 8), (0, 8), (table, 8), (0, 4)),
        *((header_size, 2), (0, 2), (0, 2), (section_size, 2), (3, 2), (2, 2)),
    )
    header = ident + b"".join(value.to_bytes(width, "little") for value, width in fields)
    sections = bytes(section_size) + section(1, 1, header_size, len(info))
    sections += section(10, 3, header_size + len(info), len(names))
    return header + info + names + sections


@pytest.fixture
def images(tmp_path: Path) -> GuestImages:
    root = tmp_path / "lib/modules/6.1-test"
    (root / "kernel/net").mkdir(parents=True)
    (root / "kernel/net/9pnet.ko").write_bytes(module(license="GPL", depends=""))
    (root / "kernel/net/9p.ko.gz").write_bytes(gzip.compress(module(depends="9pnet,netfs")))
    (root / "kernel/net/xen-netfront.ko").write_bytes(module(depends="", softdep="pre: 9pnet absent post: 9p"))
    (root / "modules.builtin").write_text("kernel/fs/netfs/netfs.ko\n")
    return GuestImages("test", "6.1-test", tmp_path / "vmlinuz", modules=root)


def test_dependencies_come_first_and_builtin_ones_not_at_all(images: GuestImages) -> None:
    tree = kmodules.ModuleTree(images.modules or images.kernel)
    assert [each.name for each in tree.closure(("9p", "xen-netfront", "9pnet"))] == ["9pnet", "9p", "xen_netfront"]


def test_a_soft_dependency_comes_first_where_it_exists(images: GuestImages) -> None:
    tree = kmodules.ModuleTree(images.modules or images.kernel)
    assert [each.name for each in tree.closure(("xen_netfront",))] == ["9pnet", "xen_netfront"]


def test_an_unknown_module_is_named_with_the_nearest(images: GuestImages) -> None:
    tree = kmodules.ModuleTree(images.modules or images.kernel)
    with pytest.raises(ConfigError, match=r"6\.1-test has no module xen_netfrnt: did you mean xen_netfront\?"):
        tree.closure(("xen-netfrnt",))


@pytest.mark.parametrize(("name", "data"), [("bad.ko", b"no ELF"), ("bad.ko.gz", b"no gzip"), ("bad.ko.xz", b"no xz")])
def test_a_damaged_module_is_named(images: GuestImages, name: str, data: bytes) -> None:
    root = images.modules or images.kernel
    (root / name).write_bytes(data)
    with pytest.raises(HostError, match="bad"):
        kmodules.ModuleTree(root).closure(("bad",))


def test_a_signature_is_taken_off_and_nothing_else() -> None:
    body, signature = b"body" * 10, b"s" * 300
    trailer = bytes(8) + len(signature).to_bytes(4, "big") + kmodules.SIGNATURE_MARKER
    assert kmodules.unsigned(body + signature + trailer) == body
    assert kmodules.unsigned(body) == body


def init_of(data: bytes) -> str:
    return parse(data)["init"][1].decode()


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_init_script_is_sh_and_ends_as_asked(ending: initramfs.Ending) -> None:
    text = init_of(build_initramfs(BUSYBOX, command="echo 'a' \"$b\"", ending=ending))
    subprocess.run(["sh", "-n"], input=text.encode(), check=True)
    assert text.rstrip().endswith(ENDINGS[ending])


def test_without_a_command_there_is_a_shell_and_with_one_power_off() -> None:
    assert ENDINGS["shell"] in init_of(build_initramfs(BUSYBOX))
    with_command = build_initramfs(BUSYBOX, command="uname -a")
    assert ENDINGS["shell"] not in init_of(with_command)
    assert parse(with_command)["etc/command"][1] == b"uname -a\n"


def test_modules_are_loaded_in_order(images: GuestImages) -> None:
    data = build_initramfs(BUSYBOX, images=images, modules=["9p"])
    assert "for module in 9pnet 9p;" in init_of(data)
    assert {"lib/modules/9pnet.ko", "lib/modules/9p.ko"} <= set(parse(data))


def test_files_keep_content_and_mode(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_bytes(b"x")
    script.chmod(0o750)
    files: dict[str, bytes | Path] = {"/a/text": b"t", "a/tool": b"#!/bin/sh\n", "a/kept": script}
    entries = parse(build_initramfs(BUSYBOX, files=files))
    modes = {name: entries[name][0]["mode"] & 0o777 for name in ("a/text", "a/tool", "a/kept")}
    assert modes == {"a/text": 0o644, "a/tool": 0o755, "a/kept": 0o750}
    assert entries["a/text"][1] == b"t"


def test_what_cannot_be_put_in_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent"):
        build_initramfs(BUSYBOX, files={"x": tmp_path / "absent"})
    with pytest.raises(ConfigError, match="no modules are known"):
        build_initramfs(BUSYBOX, modules=["9p"])
    with pytest.raises(ConfigError, match="no guest 'debian'"):
        guests.provide("debian")


def test_equal_images_are_kept_once_and_unused_ones_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XENPY_CACHE", str(tmp_path))
    first = initramfs.keep(b"a" * 1000, compress=True)
    assert gzip.decompress(first.read_bytes()) == b"a" * 1000
    assert initramfs.keep(b"a" * 1000, compress=True) == first
    assert initramfs.keep(b"a" * 1000, compress=False).read_bytes() == b"a" * 1000
    os.utime(first, (0, 0))
    last = initramfs.keep(b"b", compress=True)
    assert not first.exists()
    assert last.exists()


def test_a_kernel_says_its_release(tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinuz"
    header = bytearray(0x400)
    header[0x20E:0x210] = (0x100).to_bytes(2, "little")
    header[0x300:0x310] = b"6.18.1-virt (x@y"
    kernel.write_bytes(header)
    assert guests._bzimage_release(kernel) == "6.18.1-virt"
