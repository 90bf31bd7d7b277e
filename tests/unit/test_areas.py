"""The second copy of a vCPU's clock, in guest memory: when it is written, and how."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from xenpy.domain import areas
from xenpy.errors import Errno, XenError
from xenpy.memory import PAGE_SIZE, GuestMemory
from xenpy.pv.shared_info import TIME_OFFSET, VCPU_INFO_SIZE

GPA = 0x10000 + PAGE_SIZE - 8
SIZE = VCPU_INFO_SIZE - TIME_OFFSET


class Vcpu:
    """What `areas` asks of one; its addresses lead to the same gpa while they are mapped."""

    def __init__(self) -> None:
        self.vcpu_id = 0
        self.memory = GuestMemory()
        self.memory.add_ram(0x10000, 2 * PAGE_SIZE)
        self.writes: list[tuple[int, bytes]] = []
        self.info = bytearray(VCPU_INFO_SIZE)
        infos = SimpleNamespace(vcpu_info=[SimpleNamespace(view=memoryview(self.info))])
        keeper = SimpleNamespace(kvm_copies=False, place=lambda _vcpu: None)
        self.domain: Any = SimpleNamespace(kvm_xen=False, memory=self, shared_info=infos, timekeeper=keeper)
        self.time_area: areas.Area | None = None
        self.time_published = b""
        self.mapped = True
        self.rearmed = 0

    def write(self, gpa: int, data: bytes) -> None:
        self.writes.append((gpa, bytes(data)))
        self.memory.write(gpa, data)

    def area_at(self, address: int, *, physical: bool) -> areas.Area:
        return areas.Area(address, physical)

    def area_pieces(self, address: int, size: int, *, physical: bool) -> list[tuple[int, int]]:
        assert not physical
        if not self.mapped:
            raise XenError(Errno.EFAULT)
        return list(areas.pages(address, size, PAGE_SIZE))

    def request(self, action: Any) -> None:
        action()

    def rearm(self) -> None:
        self.rearmed += 1

    def set_clock(self, version: int, rest: int) -> None:
        self.info[TIME_OFFSET : TIME_OFFSET + 4] = version.to_bytes(4, "little")
        self.info[TIME_OFFSET + 4 :] = bytes([rest]) * (SIZE - 4)

    @property
    def copy(self) -> bytes:
        return self.memory.read(GPA, SIZE)


@pytest.fixture
def vcpu() -> Any:
    return Vcpu()


def test_the_copy_follows_the_first(vcpu: Any) -> None:
    vcpu.set_clock(2, 0x11)
    areas.register_time(vcpu, GPA, physical=False)
    assert vcpu.copy == vcpu.info[TIME_OFFSET:]
    assert vcpu.rearmed == 1
    vcpu.writes.clear()
    areas.publish_time(vcpu)
    assert vcpu.writes == [], "nothing has changed"
    vcpu.set_clock(4, 0x22)
    areas.publish_time(vcpu)
    assert vcpu.copy == vcpu.info[TIME_OFFSET:]


def test_its_version_is_odd_while_it_changes(vcpu: Any) -> None:
    vcpu.set_clock(6, 0x33)
    areas.register_time(vcpu, GPA, physical=False)
    first, *rest, last = vcpu.writes
    assert first == (GPA, (5).to_bytes(4, "little"))
    assert last == (GPA, (6).to_bytes(4, "little"))
    assert b"".join(data for _, data in rest) == vcpu.info[TIME_OFFSET + 4 :]


def test_a_page_that_is_not_there_is_tried_again(vcpu: Any) -> None:
    vcpu.set_clock(2, 0x44)
    vcpu.mapped = False
    areas.register_time(vcpu, GPA, physical=False)
    assert vcpu.time_published, "not every millisecond"
    vcpu.mapped = True
    areas.publish_time(vcpu)
    assert vcpu.copy == vcpu.info[TIME_OFFSET:]


@pytest.mark.parametrize("version", [0, 3])
def test_a_clock_that_is_none_or_changes_is_not_copied(vcpu: Any, version: int) -> None:
    vcpu.set_clock(version, 0x55)
    areas.register_time(vcpu, GPA, physical=False)
    assert vcpu.writes == []


def test_null_ends_it(vcpu: Any) -> None:
    vcpu.set_clock(2, 0x66)
    areas.register_time(vcpu, GPA, physical=False)
    areas.register_time(vcpu, 0, physical=False)
    vcpu.writes.clear()
    vcpu.set_clock(4, 0x77)
    areas.publish_time(vcpu)
    assert vcpu.writes == []
