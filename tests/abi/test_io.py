"""Split drivers' numbers and layouts against the public headers, by the C compiler."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conformance import Claim, refuted, require

from xenpy.abi import blkif, ring, xenbus

if TYPE_CHECKING:
    from collections.abc import Iterator
    from enum import IntEnum

HEADERS = ("xen/xen.h", "xen/grant_table.h", "xen/io/ring.h", "xen/io/blkif.h", "xen/io/protocols.h", "xen/io/xenbus.h")
ENUMS: dict[type[IntEnum], str] = {
    blkif.BLKIF_OP: "BLKIF_OP_",
    blkif.BLKIF_RSP: "BLKIF_RSP_",
    xenbus.XenbusState: "XenbusState",
}
REQUEST = ("operation", "nr_segments", "handle", "id", "sector_number")
DISCARD = ("operation", "flag", "handle", "id", "sector_number", "nr_sectors")
INDIRECT = ("operation", "indirect_op", "nr_segments", "id", "sector_number", "handle", "indirect_grefs")
RESPONSE = ("id", "operation", "status")


def holding(claims: list[Claim], bits: int = 64) -> None:
    require(HEADERS)
    assert refuted(HEADERS, claims, bits=bits) == {}


def test_enumerations() -> None:
    names = [(f"{prefix}{member.name}", member) for enum, prefix in ENUMS.items() for member in enum]
    names += [(f"VDISK_{flag.name}", flag) for flag in blkif.VDISK]
    holding([Claim(name, f"{name} == {value}") for name, value in names])


def test_limits() -> None:
    names = ("BLKIF_MAX_SEGMENTS_PER_REQUEST", "BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST")
    holding([Claim(name, f"{name} == {getattr(blkif, name)}") for name in names])


def fields_of(struct: str, fields: tuple[str, ...], layout: str) -> Iterator[Claim]:
    """Yield a claim for each field of a struct format."""
    size = {"B": 1, "H": 2, "I": 4, "Q": 8, "h": 2}
    offset = index = 0
    count = ""
    for code in layout.removeprefix("<"):
        if code.isdigit():
            count += code
            continue
        width = size.get(code, 1) * int(count or 1)
        if code != "x":
            field = fields[index]
            yield Claim(f"{struct}.{field}", f"offsetof(struct {struct}, {field}) == {offset}")
            yield Claim(f"{struct}.{field}", f"sizeof(((struct {struct} *)0)->{field}) == {width}")
            index += 1
        offset, count = offset + width, ""
    assert index == len(fields)


@pytest.mark.parametrize(("layout", "bits"), [(blkif.X86_64, 64), (blkif.X86_32, 32)])
def test_layouts(layout: blkif.BlkifLayout, bits: int) -> None:
    claims = [
        *fields_of("blkif_request", REQUEST, layout.request.format),
        *fields_of("blkif_request_discard", DISCARD, layout.discard.format),
        *fields_of("blkif_request_indirect", INDIRECT, layout.indirect.format),
        *fields_of("blkif_response", RESPONSE, layout.response.format),
        *fields_of("blkif_request_segment", ("gref", "first_sect", "last_sect"), blkif.SEGMENT.format),
        Claim("segment", f"sizeof(struct blkif_request_segment) == {blkif.SEGMENT.size}"),
        Claim("seg", f"offsetof(struct blkif_request, seg) == {layout.request.size}"),
        Claim("entry", f"sizeof(union blkif_sring_entry) == {layout.entry_size}"),
        Claim("response", f"sizeof(struct blkif_response) == {layout.response.size}"),
    ]
    holding(claims, bits)


def test_the_header_of_a_ring() -> None:
    names = ("req_prod", "req_event", "rsp_prod", "rsp_event")
    words = (ring.SRING_REQ_PROD, ring.SRING_REQ_EVENT, ring.SRING_RSP_PROD, ring.SRING_RSP_EVENT)
    holding(
        [
            *(
                Claim(name, f"offsetof(blkif_sring_t, {name}) == 4 * {word}")
                for name, word in zip(names, words, strict=True)
            ),
            Claim("ring", f"offsetof(blkif_sring_t, ring) == {ring.SRING_HEADER_SIZE}"),
        ]
    )


def test_names_of_protocols() -> None:
    require(HEADERS)
    text = Path("/usr/include/xen/io/protocols.h").read_text()
    defined = dict(re.findall(r'^#\s*define XEN_IO_PROTO_ABI_(X86_\w+)\s+"(.*)"', text, re.MULTILINE))
    assert set(blkif.LAYOUTS) == set(defined.values())
    assert defined["X86_64"] == blkif.NATIVE_PROTOCOL
