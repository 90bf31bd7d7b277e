from __future__ import annotations

import bz2
import gzip
import lzma
import os
import struct
import sys
import zlib
from typing import TYPE_CHECKING

import pytest
from builder_images import CODE, PHYS32_ENTRY, bzimage, elf, note, pvh_elf

from xenpy.builder import bzimage as bzimage_module
from xenpy.builder import compression, kernel, unpacked
from xenpy.builder.kernel import load_kernel
from xenpy.errors import ConfigError, HostError

if TYPE_CHECKING:
    from pathlib import Path

KERNEL = pvh_elf(CODE * 40 + bytes(0x10000) + os.urandom(5000))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XENPY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vmlinux"


def lz4_legacy(data: bytes) -> bytes:
    import lz4.block

    blocks = [
        lz4.block.compress(data[at : at + compression.LZ4_LEGACY_BLOCK], store_size=False)
        for at in range(0, len(data), compression.LZ4_LEGACY_BLOCK)
    ]
    return bytes.fromhex("02214c18") + b"".join(struct.pack("<I", len(block)) + block for block in blocks)


def lz4_frame(data: bytes) -> bytes:
    import lz4.frame

    return lz4.frame.compress(data)


def zstd_sized(data: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor(level=3).compress(data)


def zstd_streamed(data: bytes) -> bytes:
    """As Linux's build makes it: from a pipe, so that the frame does not state its size."""
    import zstandard

    stream = zstandard.ZstdCompressor(level=3, write_content_size=False).compressobj()
    return stream.compress(data) + stream.flush()


def lzop(data: bytes, *, version: int = 0x1030, block_size: int = 16 << 10) -> bytes:
    import lzallright

    codec = lzallright.LZOCompressor()
    head = bytes.fromhex("894c5a4f000d0a1a0a") + struct.pack(">HH", version, 0x2080)
    flags = 0x1 | 0x2  # Adler-32 of both
    if version >= 0x940:
        head += struct.pack(">HBBIIIIB", 0x940, 1, 5, flags, 0, 0, 0, 4) + b"name"
    else:
        head += struct.pack(">BIIIB", 1, flags, 0, 0, 4) + b"name"
    blocks = []
    for at in range(0, len(data), block_size):
        block = data[at : at + block_size]
        packed = bytes(codec.compress(block))
        if len(packed) < len(block):
            blocks.append(
                struct.pack(">IIII", len(block), len(packed), zlib.adler32(block), zlib.adler32(packed)) + packed
            )
        else:
            blocks.append(struct.pack(">III", len(block), len(block), zlib.adler32(block)) + block)
    return head + bytes(4) + b"".join(blocks) + bytes(4)


def lzma_alone(data: bytes) -> bytes:
    return lzma.compress(data, format=lzma.FORMAT_ALONE)


def xz_x86(data: bytes) -> bytes:
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "dict_size": 32 << 20}]
    return lzma.compress(data, check=lzma.CHECK_CRC32, filters=filters)


COMPRESSIONS = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": xz_x86,
    "lzma": lzma_alone,
    "lzo": lzop,
    "lzo-old": lambda data: lzop(data, version=0x0900),
    "lz4-legacy": lz4_legacy,
    "lz4-frame": lz4_frame,
    "zstd": zstd_sized,
    "zstd-streamed": zstd_streamed,
}
EXTRAS = {"lzo": "lzallright", "lz4-legacy": "lz4", "lz4-frame": "lz4", "zstd": "zstandard"}


@pytest.fixture(params=COMPRESSIONS)
def packing(request):
    package = EXTRAS.get(request.param.removesuffix("-old").removesuffix("-streamed"))
    if package is not None:
        pytest.importorskip(package)
    return request.param, COMPRESSIONS[request.param]


def packed_kernel(packing, data: bytes = KERNEL, trailer: int | None = None) -> bytes:
    name, compress = packing
    return bzimage(compress(data), trailer=None if name == "gzip" else len(data) if trailer is None else trailer)


def load(tmp_path: Path, data: bytes):
    path = tmp_path / "vmlinuz"
    path.write_bytes(data)
    return load_kernel(path)


def test_bzimage_of_every_compression(tmp_path, packing):
    with load(tmp_path, packed_kernel(packing)) as image:
        assert bytes(image.data[:]) == KERNEL
        assert image.notes.phys32_entry == 0x200000
        assert image.cmdline_max == 2047


def test_compressed_elf_and_compressed_bzimage(tmp_path, packing):
    for inner in (KERNEL, bzimage(gzip.compress(KERNEL))):
        with load(tmp_path, packing[1](inner)) as image:
            assert bytes(image.data[:]) == KERNEL


def test_payload_that_is_not_compressed(tmp_path):
    assert load(tmp_path, bzimage(KERNEL)).notes.phys32_entry == 0x200000


def test_payload_of_more_than_one_lz4_block(tmp_path):
    pytest.importorskip("lz4")
    data = KERNEL + bytes(compression.LZ4_LEGACY_BLOCK)
    assert len(load(tmp_path, bzimage(lz4_legacy(data), trailer=len(data))).data) == len(data)


@pytest.mark.parametrize("wrong", [-1, 1])
def test_payload_of_another_size_than_stated(tmp_path, packing, wrong):
    if packing[0] == "gzip":  # its own end states the size
        packing = ("", lambda data: gzip.compress(data)[:-4])
    with pytest.raises(ConfigError, match="vmlinuz: "):
        load(tmp_path, packed_kernel(packing, trailer=len(KERNEL) + wrong))


def test_truncated_payload(tmp_path, packing):
    name, compress = packing
    payload = compress(KERNEL)
    cut = payload[: len(payload) // 2]
    with pytest.raises(ConfigError, match="vmlinuz: "):
        load(tmp_path, bzimage(cut + (b"" if name == "gzip" else struct.pack("<I", len(KERNEL)))))
    with pytest.raises(ConfigError, match="vmlinuz: "):
        load(tmp_path, cut)


def test_decompression_is_bounded(tmp_path, packing, monkeypatch):
    bomb = KERNEL + bytes(4 << 20)
    monkeypatch.setattr(kernel, "UNPACKED_MAX", 1 << 20)
    with pytest.raises(ConfigError, match=r"unpack to more than 0x100000 bytes|damaged"):
        load(tmp_path, packing[1](bomb))
    with pytest.raises(ConfigError, match="at most 0x100000 would be right"):
        load(tmp_path, packed_kernel(packing, bomb))


@pytest.mark.parametrize("name", EXTRAS)
def test_missing_package_names_the_extra(tmp_path, monkeypatch, name):
    package = EXTRAS[name]
    pytest.importorskip(package)
    data = packed_kernel((name, COMPRESSIONS[name]))
    for module in [loaded for loaded in sys.modules if loaded.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(HostError, match=rf"vmlinuz: .*{package}.*pip install 'xenpy\[compression\]'"):
        load(tmp_path, data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"#!/bin/sh\n", "no kernel image: it begins with 23 21"),
        (b"MZ" + bytes(600), "EFI program"),
        (gzip.compress(b"no kernel"), "no ELF file"),
        (bzimage(gzip.compress(KERNEL))[:0x230], "truncated"),
        (bzimage(gzip.compress(KERNEL))[:0xC00], "payload ends at .*truncated"),
        (bzimage(gzip.compress(KERNEL), version=0x207), r"boot protocol 2\.07.*2\.08"),
        (bzimage(b""), "without a payload"),
        (bzimage(b"what is this?"), "payload begins with 77 68 61 74 .*gzip, bzip2, xz, lzma, lzo, lz4, zstd"),
        (bzimage(gzip.compress(b"no kernel at all")), "no ELF file"),
    ],
)
def test_what_is_no_kernel_is_described(tmp_path, data, reason):
    with pytest.raises(ConfigError, match=f"vmlinuz: .*{reason}"):
        load(tmp_path, data)


def test_paths_that_are_no_files(tmp_path):
    with pytest.raises(ConfigError, match="nowhere: cannot read the kernel: No such file"):
        load_kernel(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="not a regular file"):
        load_kernel(tmp_path)


# -- the cache of unpacked kernels --------------------------------------------------------------------------------------


@pytest.fixture
def vmlinuz(tmp_path):
    path = tmp_path / "vmlinuz"
    path.write_bytes(bzimage(gzip.compress(KERNEL)))
    return path


def entries(cache: Path) -> list[Path]:
    return sorted(path for path in cache.iterdir() if not path.is_symlink())


def no_unpacking(monkeypatch):
    def unpack(*args: object) -> bytes:
        raise AssertionError("unpacked again")

    monkeypatch.setattr(bzimage_module, "unpack_payload", unpack)


def test_second_load_does_not_read_the_packed_file(vmlinuz, cache, monkeypatch):
    load_kernel(vmlinuz).close()
    no_unpacking(monkeypatch)
    monkeypatch.setattr(unpacked.UnpackedCache, "by_content", lambda *_: pytest.fail("read the file"))
    with load_kernel(vmlinuz) as image:
        assert bytes(image.data[:]) == KERNEL
        assert image.cmdline_max == 2047
    assert len(entries(cache)) == 1


def test_entry_is_sparse_where_the_kernel_is_zero(vmlinuz, cache):
    load_kernel(vmlinuz).close()
    (entry,) = entries(cache)
    assert entry.read_bytes() == KERNEL
    assert entry.stat().st_blocks * 512 < len(KERNEL)


def test_copy_of_the_file_is_known_by_its_content(vmlinuz, monkeypatch):
    load_kernel(vmlinuz).close()
    no_unpacking(monkeypatch)
    copy = vmlinuz.with_name("copy")
    copy.write_bytes(vmlinuz.read_bytes())
    assert bytes(load_kernel(copy).data[:]) == KERNEL


def test_changed_file_is_unpacked_anew(vmlinuz):
    load_kernel(vmlinuz).close()
    other = elf([], note(PHYS32_ENTRY, 0x1234))
    vmlinuz.write_bytes(bzimage(gzip.compress(other)))
    assert load_kernel(vmlinuz).notes.phys32_entry == 0x1234


@pytest.mark.parametrize("damage", [b"", b"\x7fELF", KERNEL[:5000], b"#" + KERNEL[1:]])
def test_damaged_entry_is_replaced(vmlinuz, cache, damage):
    load_kernel(vmlinuz).close()
    (entry,) = entries(cache)
    entry.write_bytes(damage)
    assert bytes(load_kernel(vmlinuz).data[:]) == KERNEL
    assert entry.read_bytes() == KERNEL


def test_cache_that_cannot_be_made_is_no_cache(vmlinuz, monkeypatch):
    monkeypatch.setenv("XENPY_CACHE", str(vmlinuz))
    assert bytes(load_kernel(vmlinuz).data[:]) == KERNEL


def test_cache_that_cannot_be_written_is_no_cache(vmlinuz, monkeypatch):
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(unpacked, "_publish", full)
    assert bytes(load_kernel(vmlinuz).data[:]) == KERNEL


def test_least_recently_used_entries_go(tmp_path, cache):
    for number in range(unpacked.KEPT + 3):
        path = tmp_path / f"vmlinuz-{number}"
        path.write_bytes(bzimage(gzip.compress(KERNEL + bytes([number]))))
        load_kernel(path).close()
        os.utime(entries(cache)[-1])
    assert len(entries(cache)) == unpacked.KEPT
    assert all(link.exists() for link in cache.iterdir())
    assert len(list(cache.iterdir())) == 2 * unpacked.KEPT
