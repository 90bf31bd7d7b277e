"""As much of ACPI's machine language as a DSDT of processors needs.

Ref: ACPI Specification 6.2, section 20 "ACPI Machine Language (AML) Specification"
"""

from __future__ import annotations

from typing import Final

ZERO: Final = b"\x00"
_ONE: Final = b"\x01"
_BYTE_PREFIX: Final = b"\x0a"
_WORD_PREFIX: Final = b"\x0b"
_DWORD_PREFIX: Final = b"\x0c"
_STRING_PREFIX: Final = b"\x0d"
_NAME_OP: Final = b"\x08"
_SCOPE_OP: Final = b"\x10"
_METHOD_OP: Final = b"\x14"
_OPERATION_REGION_OP: Final = b"\x5b\x80"
_FIELD_OP: Final = b"\x5b\x81"
_DEVICE_OP: Final = b"\x5b\x82"
_IF_OP: Final = b"\xa0"
_RETURN_OP: Final = b"\xa4"

_SYSTEM_MEMORY: Final = b"\x00"
_BYTE_ACCESS: Final = b"\x01"  # no lock, bits outside the field preserved
_NAME_SIZE: Final = 4


def name(text: str) -> bytes:
    r"""Encode a name of up to four characters, padded with underscores; a leading backslash is kept."""
    root = b"\\" if text.startswith("\\") else b""
    return root + text.removeprefix("\\").ljust(_NAME_SIZE, "_").encode("ascii")


def integer(value: int) -> bytes:
    """Encode a constant of up to 32 bits in its shortest form."""
    if value < 2:
        return _ONE if value else ZERO
    for prefix, size in ((_BYTE_PREFIX, 1), (_WORD_PREFIX, 2), (_DWORD_PREFIX, 4)):
        if value < 1 << 8 * size:
            return prefix + value.to_bytes(size, "little")
    raise ValueError(value)


def string(text: str) -> bytes:
    """Encode a string."""
    return _STRING_PREFIX + text.encode("ascii") + b"\0"


def assign(target: str, value: bytes) -> bytes:
    """Encode Name (target, value)."""
    return _NAME_OP + name(target) + value


def scope(target: str, *terms: bytes) -> bytes:
    """Encode Scope (target) {terms}."""
    return _SCOPE_OP + _package(name(target), *terms)


def device(target: str, *terms: bytes) -> bytes:
    """Encode Device (target) {terms}."""
    return _DEVICE_OP + _package(name(target), *terms)


def method(target: str, *terms: bytes) -> bytes:
    """Encode Method (target) {terms}, without arguments and not serialized."""
    return _METHOD_OP + _package(name(target), ZERO, *terms)


def when(condition: bytes, *terms: bytes) -> bytes:
    """Encode If (condition) {terms}."""
    return _IF_OP + _package(condition, *terms)


def give(value: bytes) -> bytes:
    """Encode Return (value)."""
    return _RETURN_OP + value


def memory_region(target: str, gpa: int, size: int) -> bytes:
    """Encode OperationRegion (target, SystemMemory, gpa, size)."""
    return _OPERATION_REGION_OP + name(target) + _SYSTEM_MEMORY + integer(gpa) + integer(size)


def byte_fields(region: str, *fields: str) -> bytes:
    """Encode Field (region, ByteAcc, NoLock, Preserve) of consecutive bytes."""
    return _FIELD_OP + _package(name(region), _BYTE_ACCESS, *(name(each) + _length(8) for each in fields))


def _package(*terms: bytes) -> bytes:
    """Prefix terms with their PkgLength, which counts itself."""
    body = b"".join(terms)
    for size in range(1, 5):
        encoded = _length(len(body) + size)
        if len(encoded) == size:
            return encoded + body
    raise ValueError(len(body))


def _length(value: int) -> bytes:
    """Encode a PkgLength: 6 bits in one byte, or 4 bits and up to three more bytes."""
    if value < 1 << 6:
        return bytes([value])
    rest = (value >> 4).to_bytes(max(1, ((value >> 4).bit_length() + 7) // 8), "little")
    return bytes([len(rest) << 6 | value & 0xF]) + rest
