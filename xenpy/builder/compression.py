"""The compressions that Linux packs kernels with, unpacked within a bound.

Python's library has gzip, bzip2, xz and lzma; zstd, lz4 and lzo come with the extra `xenpy[compression]`.

Ref: Linux Documentation/arch/x86/boot.rst (payload_offset names the magic numbers), each format's own document below
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from xenpy.errors import ConfigError, HostError

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.builder.elf import Buffer

LZ4_LEGACY_BLOCK: Final = 8 << 20
"""What a block of the legacy format unpacks to at most. Ref: lz4 doc/lz4_Frame_format.md "Legacy frame"."""

_XZ_MEMORY: Final = 1 << 30  # a dictionary may be declared as large as 4 GiB; Linux's are of 32 to 128 MiB
_LZO_METHODS: Final = (1, 2, 3)  # LZO1X-1, LZO1X-1(15), LZO1X-999: one decompressor


class _CorruptError(Exception):
    """The compressed data are damaged."""


class _TooLargeError(Exception):
    """The data unpack to more than the limit."""


class Format(NamedTuple):
    """A compression: its name, the bytes it begins with and the function that unpacks at most `limit` bytes of it."""

    name: str
    magic: bytes
    unpack: Callable[[bytes, int], bytes]


def detect(data: Buffer) -> Format | None:
    """Return the compression of `data` by its first bytes, or None."""
    head = data[: max(len(form.magic) for form in FORMATS)]
    return next((form for form in FORMATS if head.startswith(form.magic)), None)


def unpack(name: str, form: Format, data: bytes, limit: int) -> bytes:
    """Return `data` unpacked; bytes after the end of the compressed stream are ignored.

    Raises ConfigError, naming the file `name`, if the data are damaged or unpack to more than `limit` bytes; HostError
    if the package for this compression is not installed.
    """
    try:
        return form.unpack(data, limit)
    except ImportError as error:
        raise HostError(
            f"{name}: unpacking {form.name} needs the Python package {error.name}: pip install 'xenpy[compression]'"
        ) from error
    except _CorruptError as error:
        raise ConfigError(f"{name}: damaged {form.name} data: {error}") from error
    except _TooLargeError as error:
        raise ConfigError(f"{name}: its {form.name} data unpack to more than {limit:#x} bytes") from error
    except MemoryError as error:
        raise ConfigError(f"{name}: unpacking its {form.name} data takes too much memory") from error


def _gzip(data: bytes, limit: int) -> bytes:
    """Ref: RFC 1952."""
    import zlib

    stream = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        result = stream.decompress(data, limit + 1)
    except zlib.error as error:
        raise _CorruptError(error) from error
    return _whole(result, limit, ended=stream.eof)


def _bzip2(data: bytes, limit: int) -> bytes:
    import bz2

    stream = bz2.BZ2Decompressor()
    try:
        result = stream.decompress(data, limit + 1)
    except OSError as error:
        raise _CorruptError(error) from error
    return _whole(result, limit, ended=stream.eof)


def _lzma(data: bytes, limit: int) -> bytes:
    """Unpack .xz and the older .lzma, told apart by the library."""
    import lzma

    try:
        stream = lzma.LZMADecompressor(lzma.FORMAT_AUTO, memlimit=_XZ_MEMORY)
        result = stream.decompress(data, limit + 1)
    except (lzma.LZMAError, EOFError) as error:
        raise _CorruptError(error) from error
    return _whole(result, limit, ended=stream.eof)


def _zstd(data: bytes, limit: int) -> bytes:
    """Unpack one frame; Linux's are written from a pipe and do not state their size. Ref: RFC 8878."""
    import zstandard

    try:
        stated = zstandard.get_frame_parameters(data).content_size
        if zstandard.CONTENTSIZE_UNKNOWN != stated > limit:
            raise _TooLargeError
        result: bytes = zstandard.ZstdDecompressor().decompress(data, max_output_size=limit, allow_extra_data=True)
    except zstandard.ZstdError as error:
        raise _CorruptError(error) from error
    return result


def _lz4_legacy(data: bytes, limit: int) -> bytes:
    """Ref: lz4 doc/lz4_Frame_format.md "Legacy frame": magic, then {u32 size, block} to the end or the next magic."""
    import lz4.block

    blocks: list[bytes] = []
    size, offset = 0, len(_LZ4_LEGACY_MAGIC)
    while offset + 4 <= len(data) and size <= limit:
        (packed,) = struct.unpack_from("<I", data, offset)
        offset += 4
        if offset + packed > len(data):
            if blocks and offset == len(data):  # the size that Linux appends, where the caller did not strip it
                break
            raise _CorruptError("it ends within a block")
        try:
            block = lz4.block.decompress(data[offset : offset + packed], uncompressed_size=LZ4_LEGACY_BLOCK)
        except (lz4.block.LZ4BlockError, ValueError, OverflowError) as error:
            raise _CorruptError(error) from error
        blocks.append(block)
        size += len(block)
        offset += packed
    return _whole(b"".join(blocks), limit, ended=True)


def _lz4_frame(data: bytes, limit: int) -> bytes:
    import lz4.frame

    stream = lz4.frame.LZ4FrameDecompressor()
    try:
        result: bytes = stream.decompress(data, limit + 1)
    except (RuntimeError, EOFError) as error:
        raise _CorruptError(error) from error
    return _whole(result, limit, ended=stream.eof)


class _LzopReader:
    """Big-endian fields of an lzop file, in order."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._offset = len(_LZOP_MAGIC)

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def take(self, size: int) -> bytes:
        piece = self._data[self._offset : self._offset + size]
        if len(piece) < size:
            raise _CorruptError("it ends within a block")
        self._offset += size
        return piece


def _lzo(data: bytes, limit: int) -> bytes:
    """Unpack lzop's container, which is what Linux's lzo payloads are.

    Ref: lzop's file format, as described in its source's conf.h and file.c: header, then {u32 size, u32 packed size,
    checksums by flags, block} until a size of 0; checksums are not verified, since the ELF inside is validated in full
    """
    import lzallright

    reader = _LzopReader(data)
    flags = _lzop_header(reader)
    unpacked_checksums = bool(flags & 0x1) + bool(flags & 0x100)  # Adler-32, CRC-32
    packed_checksums = bool(flags & 0x2) + bool(flags & 0x200)
    codec: Any = lzallright.LZOCompressor()
    blocks: list[bytes] = []
    room = limit
    while room >= 0 and (size := reader.number(4)):
        packed = reader.number(4)
        if packed > size or size > _LZOP_BLOCK_MAX:
            raise _CorruptError(f"a block of {size:#x} bytes packed into {packed:#x}")
        reader.take(4 * (unpacked_checksums + (packed_checksums if packed < size else 0)))
        block = reader.take(packed)
        if packed < size:
            try:
                block = codec.decompress(block, size)
            except lzallright.LZOError as error:
                raise _CorruptError(error) from error
        if len(block) != size:
            raise _CorruptError(f"a block of {size:#x} bytes unpacks to {len(block):#x}")
        blocks.append(block)
        room -= size
    return _whole(b"".join(blocks), limit, ended=True)


def _lzop_header(reader: _LzopReader) -> int:
    """Read the file header and return its flags."""
    version = reader.number(2)
    extended = version >= 0x0940
    reader.take(2 + (2 if extended else 0))  # library version, version needed to extract
    method = reader.number(1)
    if method not in _LZO_METHODS:
        raise _CorruptError(f"lzop method {method} is none of {_LZO_METHODS}")
    reader.take(1 if extended else 0)  # level
    flags = reader.number(4)
    if flags & 0x800:
        raise _CorruptError("it was written with a filter, which kernels are not")
    reader.take(4 + 4 + (4 if extended else 0))  # mode, mtime
    reader.take(reader.number(1))  # file name
    reader.take(4)  # header checksum
    return flags


def _whole(result: bytes, limit: int, *, ended: bool) -> bytes:
    if len(result) > limit:
        raise _TooLargeError
    if not ended:
        raise _CorruptError("it is truncated")
    return result


_LZ4_LEGACY_MAGIC: Final = bytes.fromhex("02214c18")
_LZOP_MAGIC: Final = bytes.fromhex("894c5a4f000d0a1a0a")
_LZOP_BLOCK_MAX: Final = 64 << 20

FORMATS: Final = (
    Format("gzip", bytes.fromhex("1f8b"), _gzip),
    Format("bzip2", b"BZh", _bzip2),
    Format("xz", bytes.fromhex("fd377a585a00"), _lzma),
    Format("lzma", bytes.fromhex("5d0000"), _lzma),
    Format("lzo", _LZOP_MAGIC, _lzo),
    Format("lz4", _LZ4_LEGACY_MAGIC, _lz4_legacy),
    Format("lz4", bytes.fromhex("04224d18"), _lz4_frame),
    Format("zstd", bytes.fromhex("28b52ffd"), _zstd),
)
