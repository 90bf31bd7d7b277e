r"""ACPI tables of a PVH guest: its processors and nothing else, as Xen's toolstack describes them.

There is no _S5: such a guest powers off by halting every vCPU. A byte per processor in the first page of the area holds whether
it is present; `_STA` reads it, so a processor is shown or hidden by changing a byte.

Ref: ACPI Specification 6.2, section 5.2; libacpi of Xen's tools for what is in them
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from xenpy.builder import aml
from xenpy.builder.layout import ACPI_START, LAPIC_BASE, page_up
from xenpy.memory import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

ACPI_INFO_GPA: Final = ACPI_START
"""One byte per processor: 1 if it is present."""
TABLES_GPA: Final = ACPI_START + PAGE_SIZE
LEGACY_RSDP_GPA: Final = 0x100000 - 64
"""Where kernels without XENFEAT_linux_rsdp_unrestricted look for the RSDP."""

MAX_VCPUS: Final = PAGE_SIZE

_OEM_ID: Final = b"Xen   "
_OEM_TABLE_ID: Final = b"HVM     "
_CREATOR_ID: Final = b"XNPY"
_HEADER: Final = struct.Struct("<4sIBB6s8sI4sI")
_HEADER_CHECKSUM: Final = 9
_ALIGN: Final = 64  # what the FACS needs; no table needs more

_RSDP: Final = struct.Struct("<8sB6sBIIQB3x")
_RSDP_REVISION: Final = 2
_RSDP_V1_SIZE: Final = 20
_RSDP_CHECKSUM: Final = 8
_RSDP_EXTENDED_CHECKSUM: Final = 32
RSDP_SIZE: Final = _RSDP.size

_FACS: Final = struct.Struct("<4sIIIIIQB31x")
_FACS_VERSION: Final = 1

_MADT_REVISION: Final = 2
_MADT_PCAT_COMPAT: Final = 1
_MADT_LAPIC: Final = struct.Struct("<BBBBI")  # type 0: acpi id, apic id, flags
_MADT_X2APIC: Final = struct.Struct("<BBHIII")  # type 9: x2apic id, flags, acpi uid
_MADT_ENABLED: Final = 1
_XAPIC_ID_MAX: Final = 0xFE  # 0xff is a broadcast

_DSDT_REVISION: Final = 2  # 64-bit integers
_PRESENT: Final = 0x0F  # _STA: present, enabled, shown, functioning

_FADT_REVISION: Final = 5
_FADT_SIZE: Final = 268
_ADDRESS: Final = struct.Struct("<BBBBQ")  # generic address: space, bit width, bit offset, access size, address
_SYSTEM_IO: Final = 1
_SCI_IRQ: Final = 9
_PM1A_EVENT: Final = 0xB000
_PM1A_CONTROL: Final = 0xB004
_GPE0: Final = 0xAFE0
_ACCESS_WORD: Final = 2
_ACCESS_BYTE: Final = 1
_NO_C2: Final = 0xFFF  # worst-case latencies that mean "not supported"
_NO_C3: Final = 0xFFF
_BOOT_NO_VGA: Final = 1 << 2
_BOOT_NO_CMOS_RTC: Final = 1 << 5
_FLAG_WBINVD: Final = 1 << 0
_FLAG_PROC_C1: Final = 1 << 2
_FLAG_PWR_BUTTON: Final = 1 << 4  # set: no fixed-hardware button
_FLAG_SLP_BUTTON: Final = 1 << 5
_FLAG_FIX_RTC: Final = 1 << 6


class AcpiTables(NamedTuple):
    """The ACPI area: `data`, whole pages, goes to `ACPI_START`; `rsdp` is a copy of the RSDP in it, at `rsdp_gpa`."""

    data: bytes
    rsdp: bytes
    rsdp_gpa: int


def twice(vcpu_id: int) -> int:
    """Return the APIC id that Xen gives a vCPU."""
    return 2 * vcpu_id


def build_acpi(vcpus: int, max_vcpus: int, apic_id: Callable[[int], int] = twice) -> AcpiTables:
    """Return the tables of a guest of `max_vcpus` processors, the first `vcpus` of them present."""
    area = _Area()
    facs = area.add(_FACS.pack(b"FACS", _FACS.size, 0, 0, 0, 0, 0, _FACS_VERSION))
    dsdt = area.add(_table(b"DSDT", _DSDT_REVISION, _dsdt(max_vcpus)))
    fadt = area.add(_fadt(facs, dsdt))
    madt = area.add(_madt(vcpus, max_vcpus, apic_id))
    xsdt = area.add(_table(b"XSDT", 1, struct.pack("<2Q", fadt, madt)))
    rsdt = area.add(_table(b"RSDT", 1, struct.pack("<2I", fadt, madt)))
    rsdp = _rsdp(rsdt, xsdt)
    rsdp_gpa = area.add(rsdp)
    info = bytearray(PAGE_SIZE)
    info[:vcpus] = bytes([1]) * vcpus
    tables = bytes(area.data)
    return AcpiTables(bytes(info) + tables.ljust(page_up(len(tables)), b"\0"), rsdp, rsdp_gpa)


class _Area:
    """Tables one behind the other."""

    def __init__(self) -> None:
        self.data = bytearray()

    def add(self, table: bytes) -> int:
        """Append a table and return its gpa."""
        self.data.extend(bytes(-len(self.data) % _ALIGN))
        gpa = TABLES_GPA + len(self.data)
        self.data.extend(table)
        return gpa


def _checksum(data: bytes | bytearray) -> int:
    return -sum(data) & 0xFF


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    size = _HEADER.size + len(body)
    table = bytearray(_HEADER.pack(signature, size, revision, 0, _OEM_ID, _OEM_TABLE_ID, 0, _CREATOR_ID, 0) + body)
    table[_HEADER_CHECKSUM] = _checksum(table)
    return bytes(table)


def _rsdp(rsdt: int, xsdt: int) -> bytes:
    rsdp = bytearray(_RSDP.pack(b"RSD PTR ", 0, _OEM_ID, _RSDP_REVISION, rsdt, _RSDP.size, xsdt, 0))
    rsdp[_RSDP_CHECKSUM] = _checksum(rsdp[:_RSDP_V1_SIZE])
    rsdp[_RSDP_EXTENDED_CHECKSUM] = _checksum(rsdp)
    return bytes(rsdp)


def _madt(vcpus: int, max_vcpus: int, apic_id: Callable[[int], int]) -> bytes:
    entries = [struct.pack("<II", LAPIC_BASE, _MADT_PCAT_COMPAT)]
    for vcpu_id in range(max_vcpus):
        flags = _MADT_ENABLED if vcpu_id < vcpus else 0
        if apic_id(vcpu_id) <= _XAPIC_ID_MAX:
            entries.append(_MADT_LAPIC.pack(0, _MADT_LAPIC.size, vcpu_id, apic_id(vcpu_id), flags))
        else:
            entries.append(_MADT_X2APIC.pack(9, _MADT_X2APIC.size, 0, apic_id(vcpu_id), flags, vcpu_id))
    return _table(b"APIC", _MADT_REVISION, b"".join(entries))


def _dsdt(max_vcpus: int) -> bytes:
    """Return Scope (_SB) with, for each processor, Device (Pnnn) {_HID ACPI0007, _UID n, _STA}."""
    present = [f"C{vcpu_id:03X}" for vcpu_id in range(max_vcpus)]
    return aml.scope(
        "\\_SB",
        aml.memory_region("INFO", ACPI_INFO_GPA, max_vcpus),
        aml.byte_fields("INFO", *present),
        *(
            aml.device(
                f"P{vcpu_id:03X}",
                aml.assign("_HID", aml.string("ACPI0007")),
                aml.assign("_UID", aml.integer(vcpu_id)),
                aml.method("_STA", aml.when(aml.name(field), aml.give(aml.integer(_PRESENT))), aml.give(aml.ZERO)),
            )
            for vcpu_id, field in enumerate(present)
        ),
    )


def _fadt(facs: int, dsdt: int) -> bytes:
    """Return a FADT without buttons, VGA, RTC or PM timer.

    The PM1 and GPE0 ports are Xen's; nothing is behind them in a PVH guest, where an unclaimed port reads as ones.
    """

    def port(gpa: int, bits: int, access: int) -> bytes:
        return _ADDRESS.pack(_SYSTEM_IO, bits, 0, access, gpa)

    none = _ADDRESS.pack(_SYSTEM_IO, 0, 0, 0, 0)
    flags = _FLAG_WBINVD | _FLAG_PROC_C1 | _FLAG_PWR_BUTTON | _FLAG_SLP_BUTTON | _FLAG_FIX_RTC
    body = b"".join((
        struct.pack("<IIBBHIBBBB", facs, dsdt, 0, 0, _SCI_IRQ, 0, 0, 0, 0, 0),  # SMI_CMD 0: always in ACPI mode
        struct.pack("<8I", _PM1A_EVENT, 0, _PM1A_CONTROL, 0, 0, 0, _GPE0, 0),
        struct.pack("<8B", 4, 2, 0, 0, 4, 0, 0, 0),  # their lengths, in bytes
        struct.pack("<HHHHBBBBBHBI", _NO_C2, _NO_C3, 0, 0, 0, 0, 0, 0, 0, _BOOT_NO_VGA | _BOOT_NO_CMOS_RTC, 0, flags),
        none + struct.pack("<BHB", 0, 0, 0),  # no reset register
        struct.pack("<QQ", facs, dsdt),
        port(_PM1A_EVENT, 32, _ACCESS_WORD) + none,
        port(_PM1A_CONTROL, 16, _ACCESS_WORD) + none,
        none + none,  # PM2 control, PM timer
        port(_GPE0, 32, _ACCESS_BYTE) + none,
        none + none,  # sleep control and status
    ))  # fmt: skip
    table = _table(b"FACP", _FADT_REVISION, body)
    assert len(table) == _FADT_SIZE
    return table
