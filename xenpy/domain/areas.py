"""Structures in guest memory that the guest asks to be kept current: a vCPU's runstate and a second copy of its clock."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from struct import calcsize
from typing import TYPE_CHECKING, Final, NamedTuple

from xenpy.errors import Errno, XenError
from xenpy.memory import PAGE_SIZE
from xenpy.pv.shared_info import TIME_OFFSET, VCPU_INFO_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xenpy.domain.vcpu import Vcpu

TIME_PERIOD_NS: Final = 1_000_000_000
"""A guest that runs for so long is made to stop, and its second clock brought up to date, as by Xen."""
TIME_SOON_NS: Final = 1_000_000
"""Likewise, where the first clock is about to change."""
_NO_PHYSICAL: Final = (1 << 64) - 1
"""Ref: xen/include/public/vcpu.h of Xen 4.19, VCPUOP_register_vcpu_time_phys_area"""
TIME_SIZE: Final = VCPU_INFO_SIZE - TIME_OFFSET
"""Bytes of a vcpu_time_info."""
RUNSTATE_LAYOUTS: Final = "<i5Q", "<i4x5Q"
"""struct vcpu_runstate_info of a 32- and of a 64-bit guest"""
RUNSTATE_SIZES: Final = tuple(map(calcsize, RUNSTATE_LAYOUTS))
_VERSION_SIZE: Final = 4
_TRIES: Final = 16


class Area(NamedTuple):
    """Where a structure is to be: a guest-physical address, or one by the tables that the vCPU's kernel has when it is written.

    What of it is in a second page is at `rest`, if that is not simply the next one.
    """

    address: int
    physical: bool
    rest: int | None = None

    def write(self, vcpu: Vcpu, data: bytes, offset: int = 0) -> None:
        """Write part of the structure. Under the host's lock. Raises XenError where no memory is that the guest may write to."""
        done = 0
        for gpa, size in self.pieces(vcpu, offset, len(data)):
            vcpu.domain.memory.write(gpa, data[done : done + size])
            done += size

    def pieces(self, vcpu: Vcpu, offset: int, size: int) -> Iterator[tuple[int, int]]:
        """Yield the (gpa, size) of where part of the structure is now. Raises XenError as `write`."""
        for start, length in self._runs(offset, size):
            yield from vcpu.area_pieces(start, length, physical=self.physical)

    def _runs(self, offset: int, size: int) -> Iterator[tuple[int, int]]:
        """Yield the (address, size) of what part of the structure consists of."""
        first = PAGE_SIZE - self.address % PAGE_SIZE if self.rest is not None else offset + size
        if offset < first:
            yield self.address + offset, min(size, first - offset)
        if self.rest is not None and offset + size > first:
            start = max(offset, first)
            yield self.rest + start - first, offset + size - start


def pages(address: int, size: int, page: int) -> Iterator[tuple[int, int]]:
    """Yield the (address, size) of what a range has of each page."""
    end = address + size
    while address < end:
        step = min(end - address, page - address % page)
        yield address, step
        address += step


def _area(vcpu: Vcpu, address: int, size: int, *, physical: bool) -> Area | None:
    """Return the area at an address, None for that which says that there is none any more. Raises XenError: EFAULT, ENXIO.

    Ref: xen/common/domain.c of Xen 4.19, map_guest_area: a physical one is within a page.
    """
    if address == (_NO_PHYSICAL if physical else 0):
        return None
    if physical and address % PAGE_SIZE + size > PAGE_SIZE:
        raise XenError(Errno.ENXIO, f"an area at gpa {address:#x} would cross the page")
    return vcpu.area_at(address, size, physical=physical)


def register_runstate(vcpu: Vcpu, address: int, *, physical: bool) -> None:
    """Keep struct vcpu_runstate_info current at a guest address. Raises XenError: EFAULT, ENXIO."""
    wide = vcpu.domain.shared_info.layout.word_bits == 64
    vcpu.account.area = _area(vcpu, address, RUNSTATE_SIZES[wide], physical=physical)
    vcpu.account.wide = wide
    vcpu.account.publish(vcpu, now=True)


def register_time(vcpu: Vcpu, address: int, *, physical: bool) -> None:
    """Keep a second vcpu_time_info current at a guest address. Raises XenError: EFAULT, ENXIO."""
    vcpu.time_area = _area(vcpu, address, TIME_SIZE, physical=physical)
    vcpu.time_published = b""
    if vcpu.domain.kvm_xen:
        vcpu.domain.timekeeper.place(vcpu)
        vcpu.request(partial(_go_on, vcpu))
        return
    publish_time(vcpu)
    vcpu.request(vcpu.rearm)


def _go_on(vcpu: Vcpu) -> None:
    """Keep the second vcpu_time_info current if KVM has turned out not to. In the vCPU's thread."""
    with vcpu.domain.host.lock:
        publish_time(vcpu)
        vcpu.rearm()


def shared_pages(vcpu: Vcpu) -> Iterator[int]:
    """Yield the page numbers (gpa) of what is kept current for a vCPU now."""
    for area, size in (vcpu.time_area, TIME_SIZE), (vcpu.account.area, RUNSTATE_SIZES[vcpu.account.wide]):
        if area is not None:
            with suppress(XenError):  # it is nowhere now
                for gpa, length in area.pieces(vcpu, 0, size):
                    yield from (start // PAGE_SIZE for start, _ in pages(gpa, length, PAGE_SIZE))


def publish_time(vcpu: Vcpu) -> None:
    """Bring the guest's second vcpu_time_info up to date if the first has changed. Under the host's lock.

    Processes read it, on other vCPUs too: so its version is odd while it changes.
    """
    if vcpu.time_area is None or vcpu.domain.timekeeper.kvm_copies(vcpu):
        return
    view = vcpu.domain.shared_info.vcpu_info[vcpu.vcpu_id].view[TIME_OFFSET:VCPU_INFO_SIZE]
    for _ in range(_TRIES):  # KVM may be writing to it while this is the hypercall of another vCPU
        data = bytes(view)
        if not data[0] & 1 and data[:_VERSION_SIZE] == view[:_VERSION_SIZE]:
            break
    else:
        return
    if data == vcpu.time_published or not any(data[:_VERSION_SIZE]):
        return
    changing = (int.from_bytes(data[:_VERSION_SIZE], "little") - 1 & 0xFFFF_FFFF).to_bytes(_VERSION_SIZE, "little")
    vcpu.time_published = changing
    with suppress(XenError):  # the page is not there now: Xen, too, tries again next time
        vcpu.time_area.write(vcpu, changing)
        vcpu.time_area.write(vcpu, data[_VERSION_SIZE:], _VERSION_SIZE)
        vcpu.time_area.write(vcpu, data[:_VERSION_SIZE])
        vcpu.time_published = data
