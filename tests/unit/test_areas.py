"""The second copy of a vCPU's clock, in guest memory: when it is written, and how."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from xenpy.domain import areas
from xenpy.domain import vcpu as domain_vcpu
from xenpy.domain.timekeeping import Timekeeper
from xenpy.errors import Errno, XenError
from xenpy.kvm.constants import KVM_INVALID_GPA, XenVcpuAttr
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
        keeper = SimpleNamespace(kvm_copies=lambda _vcpu: False, place=lambda _vcpu: None)
        self.domain: Any = SimpleNamespace(kvm_xen=False, memory=self, shared_info=infos, timekeeper=keeper)
        self.time_area: areas.Area | None = None
        self.time_published = b""
        self.mapped = True
        self.rearmed = 0

    def write(self, gpa: int, data: bytes) -> None:
        self.writes.append((gpa, bytes(data)))
        self.memory.write(gpa, data)

    def area_at(self, address: int, _size: int, *, physical: bool) -> areas.Area:
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


def test_a_physical_area_is_within_a_page(vcpu: Any) -> None:
    with pytest.raises(XenError) as error:
        areas.register_time(vcpu, GPA, physical=True)
    assert error.value.errno == Errno.ENXIO
    assert vcpu.time_area is None


class MappedVcpu(Vcpu):
    """One whose two pages at `GVA` lie at gpas in the other order, as a PVH vCPU has them."""

    GVA = 0x7000_0000
    area_at: Any = domain_vcpu.Vcpu.area_at
    area_pieces: Any = domain_vcpu.Vcpu.area_pieces

    def check(self, gpa: int, size: int) -> None:
        self.memory.check(gpa, size)

    def translate(self, gva: int, *, write: bool) -> int:
        assert write
        page, offset = divmod(gva - self.GVA, PAGE_SIZE)
        if page not in (0, 1):
            raise XenError(Errno.EFAULT)
        return 0x10000 + (1 - page) * PAGE_SIZE + offset


def test_an_area_across_pages_follows_both() -> None:
    vcpu: Any = MappedVcpu()
    vcpu.set_clock(2, 0x77)
    areas.register_time(vcpu, vcpu.GVA + PAGE_SIZE - 8, physical=False)
    assert vcpu.time_area == areas.Area(0x10000 + 2 * PAGE_SIZE - 8, True, 0x10000)
    found = vcpu.memory.read(0x10000 + 2 * PAGE_SIZE - 8, 8) + vcpu.memory.read(0x10000, SIZE - 8)
    assert found == vcpu.info[TIME_OFFSET:]
    assert set(vcpu.time_area.pieces(vcpu, 4, 8)) == {(0x10000 + 2 * PAGE_SIZE - 4, 4), (0x10000, 4)}
    assert list(vcpu.time_area.pieces(vcpu, 8, 8)) == [(0x10000, 8)]
    assert list(vcpu.time_area.pieces(vcpu, 0, 4)) == [(0x10000 + 2 * PAGE_SIZE - 8, 4)]


@pytest.mark.parametrize("register", [areas.register_time, areas.register_runstate])
def test_all_of_an_area_must_be_there(register: Any) -> None:
    vcpu: Any = MappedVcpu()
    vcpu.account = SimpleNamespace(area=None, wide=True)
    vcpu.domain.shared_info.layout = SimpleNamespace(word_bits=64)
    with pytest.raises(XenError) as error:
        register(vcpu, vcpu.GVA + 2 * PAGE_SIZE - 8, physical=False)
    assert error.value.errno == Errno.EFAULT


class KernelClock:
    """A vCPU whose clock KVM keeps, and what it has been told of the second one."""

    def __init__(self) -> None:
        self.vcpu_id = 0
        self.time_area: areas.Area | None = None
        self.kvm = self
        self.told: list[int] = []
        self.refuses = False
        infos = SimpleNamespace(vcpu_info=[SimpleNamespace(gpa=0x20000)])
        self.domain: Any = SimpleNamespace(kvm_xen=True, shared_info=infos, log=lambda *_: None)

    def request(self, action: Any) -> None:
        action()

    def xen_set_attr(self, type_: XenVcpuAttr, *, gpa: int) -> None:
        if type_ == XenVcpuAttr.VCPU_TIME_INFO:
            self.told.append(gpa)
            if self.refuses and gpa != KVM_INVALID_GPA:
                raise OSError(22, "refused")


@pytest.mark.parametrize(
    ("area", "refuses", "told"),
    [
        (areas.Area(0x10000, True), False, [0x10000]),
        (areas.Area(0x10FF8, True, 0x30000), False, []),
        (areas.Area(0x10000, True), True, [0x10000, KVM_INVALID_GPA]),
    ],
)
def test_kvm_keeps_the_copy_that_it_can(area: areas.Area, refuses: bool, told: list[int]) -> None:
    vcpu: Any = KernelClock()
    keeper = Timekeeper(vcpu.domain)
    vcpu.time_area, vcpu.refuses = area, refuses
    keeper.place(vcpu)
    assert vcpu.told == told
    assert keeper.kvm_copies(vcpu) == (told == [area.address])


def test_pages_that_are_kept_current(vcpu: Any) -> None:
    vcpu.account = SimpleNamespace(area=areas.Area(0x11000, False), wide=True)
    vcpu.time_area = areas.Area(GPA, False)
    assert list(areas.shared_pages(vcpu)) == [0x10, 0x11, 0x11]
    vcpu.mapped = False
    assert list(areas.shared_pages(vcpu)) == []
