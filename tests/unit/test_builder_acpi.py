from __future__ import annotations

import shutil
import struct
import subprocess

import pytest

from xenpy.builder import aml
from xenpy.builder.acpi import ACPI_INFO_GPA, TABLES_GPA, build_acpi
from xenpy.builder.layout import ACPI_START, LAPIC_BASE

HEADER = 36


def walk(vcpus: int, max_vcpus: int, **options) -> dict[str, bytes]:
    """Return every table by signature, found as a guest finds it: from the RSDP on."""
    area = build_acpi(vcpus, max_vcpus, **options)

    def at(gpa: int) -> bytes:
        offset = gpa - ACPI_START
        (size,) = struct.unpack_from("<I", area.data, offset + 4)
        assert gpa >= TABLES_GPA
        assert offset + size <= len(area.data)
        return area.data[offset : offset + size]

    rsdp = area.data[area.rsdp_gpa - ACPI_START :][: len(area.rsdp)]
    assert rsdp == area.rsdp
    rsdt_gpa, size, xsdt_gpa = struct.unpack_from("<IIQ", rsdp, 16)
    assert size == len(rsdp)
    tables = {"RSD PTR ": rsdp, "RSDT": at(rsdt_gpa), "XSDT": at(xsdt_gpa)}
    pointers = struct.unpack("<2Q", tables["XSDT"][HEADER:])
    assert struct.unpack("<2I", tables["RSDT"][HEADER:]) == pointers
    for gpa in pointers:
        table = at(gpa)
        tables[table[:4].decode()] = table
    facs, dsdt = struct.unpack_from("<II", tables["FACP"], 36)
    assert struct.unpack_from("<QQ", tables["FACP"], 132) == (facs, dsdt)
    assert facs % 64 == 0
    return {**tables, "FACS": at(facs), "DSDT": at(dsdt)}


@pytest.mark.parametrize("vcpus", [1, 4, 200])
def test_checksums(vcpus):
    tables = walk(vcpus, vcpus)
    assert sorted(tables) == ["APIC", "DSDT", "FACP", "FACS", "RSD PTR ", "RSDT", "XSDT"]
    for signature, table in tables.items():
        if signature != "FACS":  # it has none
            assert sum(table) % 256 == 0, signature
    assert sum(tables["RSD PTR "][:20]) % 256 == 0


def madt_entries(table: bytes) -> list[bytes]:
    entries, offset = [], HEADER + 8
    while offset < len(table):
        entries.append(table[offset : offset + table[offset + 1]])
        offset += table[offset + 1]
    return entries


def test_madt_of_absent_processors():
    madt = walk(2, 4)["APIC"]
    assert struct.unpack_from("<II", madt, HEADER) == (LAPIC_BASE, 1)
    assert [struct.unpack("<BBBBI", entry) for entry in madt_entries(madt)] == [
        (0, 8, vcpu_id, 2 * vcpu_id, vcpu_id < 2) for vcpu_id in range(4)
    ]


def test_madt_beyond_8_bit_apic_ids():
    entries = madt_entries(walk(129, 129)["APIC"])
    assert struct.unpack("<BBBBI", entries[127]) == (0, 8, 127, 254, 1)
    assert struct.unpack("<BBHIII", entries[128]) == (9, 16, 0, 256, 1, 128)


def test_other_apic_ids():
    entries = madt_entries(walk(3, 3, apic_id=lambda vcpu_id: vcpu_id + 7)["APIC"])
    assert [entry[3] for entry in entries] == [7, 8, 9]


def test_info_page_holds_who_is_present():
    area = build_acpi(3, 5)
    assert area.data[ACPI_INFO_GPA - ACPI_START :][:6] == bytes([1, 1, 1, 0, 0, 0])


def test_fadt_has_no_legacy_devices():
    fadt = walk(1, 1)["FACP"]
    assert (len(fadt), fadt[8]) == (268, 5)
    boot, flags = struct.unpack_from("<H", fadt, 109)[0], struct.unpack_from("<I", fadt, 112)[0]
    assert boot == 1 << 2 | 1 << 5  # no VGA, no RTC; no 8042 either
    assert flags & (1 << 4 | 1 << 5) == 1 << 4 | 1 << 5  # no fixed buttons
    assert struct.unpack_from("<I", fadt, 76)[0] == 0  # no PM timer


@pytest.mark.parametrize("vcpus", [1, 3, 130])
def test_tables_survive_the_compiler(tmp_path, vcpus):
    if shutil.which("iasl") is None:
        pytest.skip("iasl is not installed (package acpica-tools)")
    for signature, table in walk(vcpus, vcpus + 1).items():
        if signature == "RSD PTR ":  # no table to iasl
            continue
        source, binary = tmp_path / f"{signature}.dsl", tmp_path / f"{signature}.dat"
        binary.write_bytes(table)
        taken = subprocess.run(["iasl", "-d", binary], capture_output=True, text=True, check=True)
        assert not [line for line in (taken.stdout + taken.stderr).splitlines() if "arning" in line or "rror" in line]
        made = subprocess.run(
            ["iasl", "-we", "-p", tmp_path / f"{signature}-2", source], capture_output=True, text=True, check=False
        )
        assert made.returncode == 0, made.stdout + made.stderr
        assert "0 Errors, 0 Warnings, 0 Remarks" in made.stdout, signature
        again = (tmp_path / f"{signature}-2.aml").read_bytes()
        if signature != "DSDT":  # the compiler writes its own creator id, and so another checksum
            assert again[HEADER:] == table[HEADER:], signature


def test_dsdt_as_the_disassembler_reads_it(tmp_path):
    if shutil.which("iasl") is None:
        pytest.skip("iasl is not installed (package acpica-tools)")
    (tmp_path / "dsdt.dat").write_bytes(walk(2, 2)["DSDT"])
    subprocess.run(["iasl", "-d", tmp_path / "dsdt.dat"], capture_output=True, check=True)
    text = " ".join((tmp_path / "dsdt.dsl").read_text().split())
    assert "Scope (\\_SB)" in text
    assert f"OperationRegion (INFO, SystemMemory, 0x{ACPI_INFO_GPA:08X}, 0x02)" in text
    assert 'Device (P001) { Name (_HID, "ACPI0007" /* Processor Device */)' in text
    assert "Name (_UID, One)" in text
    assert "If (C001) { Return (0x0F) } Return (Zero)" in text


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (1, "01"),
        (2, "0a02"),
        (0xFF, "0aff"),
        (0x100, "0b0001"),
        (0x10000, "0c00000100"),
        (0xFFFFFFFF, "0cffffffff"),
    ],
)
def test_constants_take_their_shortest_form(value, encoded):
    assert aml.integer(value).hex() == encoded


@pytest.mark.parametrize("body", [0, 57, 58, 61, 62, 0xFF8, 0xFF9, 0xFFA, 0xFFFF5, 0xFFFF8])
def test_package_lengths_count_themselves(body):
    encoded = aml.scope("\\_SB", bytes(body))
    extra = encoded[1] >> 6
    low, rest = encoded[1] & (0xF if extra else 0x3F), int.from_bytes(encoded[2 : 2 + extra], "little")
    assert low + (rest << 4) == len(encoded) - 1
    assert encoded[2 + extra :] == b"\\_SB_" + bytes(body)
