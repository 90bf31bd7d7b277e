"""Files that are configurations, and files that are not."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from xenpy.config import GuestType, load
from xenpy.config.grammar import MAX_TEXT
from xenpy.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "vmlinuz"
    path.write_bytes(b"\x7fELF")
    return path


def refusal(path: Path | str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    return str(caught.value)


def test_a_file_with_overrides(tmp_path: Path, kernel: Path) -> None:
    file = tmp_path / "g.cfg"
    file.write_text(f"name='g'\ntype='pvh'\nkernel='{kernel}'\nmemory=64\ncmdline='quiet'")
    config = load(file, ["memory=128", 'cmdline+=" debug"', "name=other"], type_override="pv")
    assert (config.memory_mib, config.cmdline, config.name, config.type) == (128, "quiet debug", "other", GuestType.PV)
    assert config.where("memory") == "<command line>:1"
    assert config.where("kernel") == f"{file}:3"


def test_dev_null_with_the_arguments_of_test_scripts(kernel: Path) -> None:
    arguments = ['name="x"', f'kernel="{kernel}"', 'type="pvh"', "memory=32", 'cmdline="a b"']
    quoted = load("/dev/null", arguments)
    bare = load("/dev/null", [argument.replace('"', "") for argument in arguments])
    for config in (quoted, bare):
        assert (config.name, config.kernel, config.type, config.memory_mib) == ("x", kernel, GuestType.PVH, 32)
        assert config.cmdline == "a b"
    assert refusal("/dev/null") == "/dev/null: key 'name' is missing: the name of the domain"


def test_wrong_overrides_name_their_number() -> None:
    assert refusal("/dev/null", "name=x", "memroy=1").startswith("<command line>:2: unknown key 'memroy'")


def test_kernel_and_ramdisk_must_be_readable(tmp_path: Path, kernel: Path) -> None:
    file = tmp_path / "g.cfg"
    file.write_text(f"name='g'\nkernel='{tmp_path}/none'")
    assert refusal(file) == f"{file}:2: key 'kernel': cannot read {tmp_path}/none: No such file or directory"
    assert load(file, check_files=False).kernel == tmp_path / "none"
    file.write_text(f"name='g'\nkernel='{kernel}'\nramdisk='{tmp_path}'")
    assert refusal(file) == f"{file}:3: key 'ramdisk': {tmp_path} is a directory"


def test_what_is_no_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none") == f"{tmp_path}/none: cannot read the configuration: No such file or directory"
    assert refusal(tmp_path) == f"{tmp_path}: cannot read the configuration: Is a directory"
    assert "cannot read the configuration" in refusal("a\0b")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_an_unreadable_file(tmp_path: Path) -> None:
    file = tmp_path / "g.cfg"
    file.touch(mode=0)
    assert refusal(file) == f"{file}: cannot read the configuration: Permission denied"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a=1\nb='\xff'", ":2: byte 0xff is not valid UTF-8"),
        (b"a='x'\nb='\0'", ":2: NUL byte; this is no configuration file"),
        (b"\x7fELF\x02\x01", ":1:1: unexpected character"),
        (b"#" * (MAX_TEXT + 1), f": larger than {MAX_TEXT} bytes"),
        (b"a=" + b"[" * 1000, ":1:67: lists are nested deeper than 64"),
    ],
    ids=["utf8", "nul", "binary", "huge", "deep"],
)
def test_what_is_no_configuration(tmp_path: Path, data: bytes, message: str) -> None:
    file = tmp_path / "g.cfg"
    file.write_bytes(data)
    assert refusal(file).startswith(f"{file}{message}")


def test_an_endless_file_is_not_read_to_its_end() -> None:
    assert refusal("/dev/zero").startswith("/dev/zero: larger than")


def test_importing_the_package_stays_cheap() -> None:
    """Costly modules, and the device parsers, wait until a configuration needs them."""
    code = "import sys, xenpy.config; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"click", "difflib", "uuid", "hashlib", "cffi", "elftools", "xenpy.config.disk", "xenpy.config.keytable"}
    assert not heavy & set(modules)
