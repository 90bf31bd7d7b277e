"""The registry of domains: what the dead leave, who is alive, and numbers and names that no two have."""

from __future__ import annotations

import multiprocessing
import os
import signal
from typing import TYPE_CHECKING

import pytest

from xenpy.errors import HostError
from xenpy.toolstack.registry import FIRST_RESERVED_DOMID, NameTaken, Registry
from xenpy.toolstack.runtime import runtime_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection
    from pathlib import Path

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path)


def hold(root: Path, name: str, pipe: Connection) -> None:
    """Register a domain and live until killed."""
    try:
        entry = Registry(root).register(name, "uuid")
    except NameTaken:
        pipe.send(None)
        return
    pipe.send(entry.record.domid)
    signal.pause()


@pytest.fixture
def holders(tmp_path: Path) -> Iterator[list[tuple[multiprocessing.process.BaseProcess, Connection]]]:
    """Processes that will register a domain; a test appends to the list."""
    found: list[tuple[multiprocessing.process.BaseProcess, Connection]] = []
    yield found
    for process, pipe in found:
        process.kill()
        process.join()
        process.close()
        pipe.close()


def start(
    holders: list[tuple[multiprocessing.process.BaseProcess, Connection]], root: Path, name: str
) -> multiprocessing.process.BaseProcess:
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=hold, args=(root, name, theirs))
    process.start()
    theirs.close()
    holders.append((process, ours))
    return process


def test_a_domain_is_there_while_it_lives(registry: Registry) -> None:
    entry = registry.register("one", "1234", log="/log")
    (record,) = registry.records()
    assert record == entry.record
    assert (record.domid, record.name, record.uuid, record.pid, record.log) == (1, "one", "1234", os.getpid(), "/log")
    assert registry.is_alive(1)
    entry.close()
    entry.close()
    assert registry.records() == []
    assert not registry.is_alive(1)
    assert list(registry.domains.iterdir()) == []


def test_numbers_are_not_used_again_soon(registry: Registry) -> None:
    for domid in (1, 2, 3):
        entry = registry.register("one", "1234")
        assert entry.record.domid == domid
        entry.close()


@pytest.mark.parametrize("last", [str(FIRST_RESERVED_DOMID - 1), "99999", "-3", "nonsense", ""])
def test_numbers_begin_anew_and_pass_over_the_living(registry: Registry, last: str) -> None:
    first = registry.register("one", "1234")
    (registry.root / "last-domid").write_text(last)
    second = registry.register("two", "1234")
    assert second.record.domid == 2
    first.close()
    second.close()


def test_names(registry: Registry) -> None:
    one, two = registry.register("one", "1"), registry.register("two", "2")
    with pytest.raises(NameTaken, match='"one" already exists'):
        registry.register("one", "3")
    with pytest.raises(NameTaken):
        two.rename("one")
    also = registry.register("one", "3", unique=False)
    assert [record.name for record in registry.records()] == ["one", "two", "one"]
    two.rename("two")
    two.rename("three")
    assert registry.records()[1].name == "three"
    for entry in (one, two, also):
        entry.close()


def test_a_new_number(registry: Registry) -> None:
    entry = registry.register("one", "1234")
    assert entry.renumber() == 2
    (record,) = registry.records()
    assert (record.domid, record.name) == (2, "one")
    assert not registry.is_alive(1)
    entry.close()
    assert list(registry.domains.iterdir()) == []


def test_what_the_killed_leave_is_removed(
    registry: Registry, holders: list[tuple[multiprocessing.process.BaseProcess, Connection]]
) -> None:
    process = start(holders, registry.root, "one")
    assert holders[0][1].recv() == 1
    assert [record.name for record in registry.records()] == ["one"]
    process.kill()
    process.join()
    assert (registry.domains / "1").is_dir()
    assert registry.records() == []
    assert list(registry.domains.iterdir()) == []
    entry = registry.register("one", "1234")
    assert entry.record.domid == 2
    entry.close()


def test_half_made_entries_are_removed(registry: Registry) -> None:
    making = registry.domains / ".making"
    making.mkdir(parents=True)
    (making / "lock").touch()
    (registry.domains / "7").mkdir()
    assert registry.records() == []
    assert list(registry.domains.iterdir()) == []


def test_processes_that_register_at_once(
    registry: Registry, holders: list[tuple[multiprocessing.process.BaseProcess, Connection]]
) -> None:
    for number in range(6):
        start(holders, registry.root, f"guest{number % 3}")
    domids = [pipe.recv() for _, pipe in holders]
    assert sorted(domid for domid in domids if domid is not None) == [1, 2, 3]
    assert sorted(record.name for record in registry.records()) == ["guest0", "guest1", "guest2"]


def test_an_entry_that_cannot_be_read_is_passed_over(registry: Registry) -> None:
    entry = registry.register("one", "1234")
    for text in ("", "[]", '{"domid": 1}', "\0"):
        (entry.directory / "record").write_text(text)
        assert registry.records() == []
    assert entry.directory.exists()
    entry.close()


def test_logs_do_not_pile_up(registry: Registry) -> None:
    for number in range(100):
        path = registry.new_log(f"../a b{number}" + "x" * 300)
        assert path.parent == registry.root / "logs"
        path.touch()
    assert len(list(path.parent.iterdir())) <= 65


def test_the_runtime_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    path = runtime_directory()
    assert path == tmp_path / "xenpy"
    assert path.stat().st_mode & 0o777 == 0o700
    assert runtime_directory() == path


@pytest.mark.parametrize("what", ["open to others", "a link", "a file"])
def test_a_runtime_directory_that_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    path = tmp_path / "xenpy"
    if what == "open to others":
        path.mkdir()
        path.chmod(0o755)
    elif what == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.touch()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(HostError, match=r"xenpy: .*XDG_RUNTIME_DIR"):
        Registry()


@pytest.mark.parametrize("value", ["", "relative", "/no/such/directory"])
def test_without_a_runtime_directory_of_the_session(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", value)
    expected = "/run/xenpy" if os.geteuid() == 0 else f"/tmp/xenpy-{os.geteuid()}"
    assert str(runtime_directory()) == expected
