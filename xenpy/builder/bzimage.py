"""Linux's bzImage: the header that says where the packed vmlinux is.

Ref: Linux Documentation/arch/x86/boot.rst
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from xenpy.builder.elf import ELF_MAGIC, Buffer
from xenpy.errors import ConfigError

HEADER_SIZE: Final = 0x260
"""Bytes of the file that hold every field used here."""

_SECTOR: Final = 512
_BOOT_FLAG: Final = (0x1FE, b"\x55\xaa")
_MAGIC: Final = (0x202, b"HdrS")
_SETUP_SECTS: Final = 0x1F1
_SETUP_SECTS_DEFAULT: Final = 4
_VERSION: Final = 0x206
_PAYLOAD: Final = 0x248  # u32 payload_offset, u32 payload_length
_CMDLINE_SIZE: Final = 0x238

VERSION_WITH_PAYLOAD: Final = 0x0208
_VERSION_WITH_CMDLINE_SIZE: Final = 0x0206
_TRAILER: Final = 4  # the unpacked size, appended to every payload whose format does not end with it; gzip's does


class BzImage(NamedTuple):
    """Where the payload is in the file, and the longest command line, NUL not counted (0 if not stated); in bytes."""

    payload_offset: int
    payload_size: int
    cmdline_size: int


def is_bzimage(data: Buffer) -> bool:
    """Tell whether a file begins with a Linux boot sector of the HdrS kind."""
    return all(data[at : at + len(value)] == value for at, value in (_BOOT_FLAG, _MAGIC))


def read_header(name: str, data: Buffer) -> BzImage:
    """Return what the header of a bzImage says. Raises ConfigError if it has no payload or one beyond the file."""
    if len(data) < HEADER_SIZE:
        raise ConfigError(f"{name}: a bzImage of only {len(data)} bytes: truncated?")
    (version,) = struct.unpack_from("<H", data, _VERSION)
    if version < VERSION_WITH_PAYLOAD:
        raise ConfigError(
            f"{name}: a bzImage of boot protocol {_dotted(version)}, which does not say where vmlinux is; "
            f"{_dotted(VERSION_WITH_PAYLOAD)} (Linux 2.6.26) or later would be right"
        )
    offset, size = struct.unpack_from("<II", data, _PAYLOAD)
    start = ((data[_SETUP_SECTS] or _SETUP_SECTS_DEFAULT) + 1) * _SECTOR + offset
    if size <= _TRAILER:
        raise ConfigError(f"{name}: a bzImage without a payload (payload_length {size})")
    if start + size > len(data):
        raise ConfigError(
            f"{name}: the bzImage's payload ends at {start + size:#x}, the file at {len(data):#x}: truncated?"
        )
    (cmdline_size,) = struct.unpack_from("<I", data, _CMDLINE_SIZE)
    return BzImage(start, size, cmdline_size if version >= _VERSION_WITH_CMDLINE_SIZE else 0)


def unpack_payload(name: str, data: Buffer, header: BzImage, limit: int) -> bytes:
    """Return the vmlinux packed in a bzImage.

    Raises ConfigError if it is damaged, not of the size it states, or larger than `limit` bytes; HostError if its
    compression needs a package that is not installed.
    """
    from xenpy.builder import compression

    payload = data[header.payload_offset : header.payload_offset + header.payload_size]
    form = compression.detect(payload)
    if form is None:
        if payload[: len(ELF_MAGIC)] == ELF_MAGIC:
            return payload
        raise ConfigError(
            f"{name}: the bzImage's payload begins with {payload[:8].hex(' ')}, which is none of "
            f"{', '.join(dict.fromkeys(known.name for known in compression.FORMATS))}"
        )
    (size,) = struct.unpack_from("<I", payload, len(payload) - _TRAILER)
    if size > limit:
        raise ConfigError(f"{name}: the bzImage states a vmlinux of {size:#x} bytes; at most {limit:#x} would be right")
    result = compression.unpack(name, form, payload if form.name == "gzip" else payload[:-_TRAILER], size)
    if len(result) != size:
        raise ConfigError(f"{name}: the bzImage states a vmlinux of {size:#x} bytes but has {len(result):#x}")
    return result


def _dotted(version: int) -> str:
    return f"{version >> 8}.{version & 0xFF:02d}"
