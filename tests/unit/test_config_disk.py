"""disk= strings and the numbers of virtual devices."""

from __future__ import annotations

import pytest

from xenpy.config import DiskBackend, DiskConfig, DiskFormat
from xenpy.config.disk import parse_disk
from xenpy.config.grammar import Atom, Position
from xenpy.config.vdev import device_number
from xenpy.errors import ConfigError

XVDA, HDA, HDC = 51712, 768, 5632


def disk(text: str) -> DiskConfig:
    return parse_disk(Atom(text, Position("f", 7, 3)))


@pytest.mark.parametrize(
    "text",
    [
        "/dev/vg/guest-volume,,hda",
        "/dev/vg/guest-volume,raw,hda,rw",
        "format=raw, vdev=hda, access=rw, target=/dev/vg/guest-volume",
        "raw:/dev/vg/guest-volume,hda,w",
        "phy:/dev/vg/guest-volume,hda,w",
        "tap:aio:/dev/vg/guest-volume,ioemu:hda",
        "file:/dev/vg/guest-volume,hda:disk,w",
        "vdev=hda,/dev/vg/guest-volume",
        "vdev=hda,,target=/dev/vg/guest-volume",
        "/dev/vg/guest-volume, raw, hda, w,",
    ],
)
def test_the_manuals_spellings_of_a_disk_are_one(text: str) -> None:
    assert disk(text) == DiskConfig("/dev/vg/guest-volume", "hda", HDA)


@pytest.mark.parametrize(
    "text",
    [
        "/root/image.iso,,hdc,cdrom",
        "/root/image.iso,,hdc,,cdrom",
        "/root/image.iso,raw,hdc,devtype=cdrom",
        "format=raw, vdev=hdc, access=ro, devtype=cdrom, target=/root/image.iso",
        "raw:/root/image.iso,hdc:cdrom,ro",
        "/root/image.iso,raw,hdc,rw,cdrom",
    ],
)
def test_a_cdrom_is_read_only(text: str) -> None:
    assert disk(text) == DiskConfig("/root/image.iso", "hdc", HDC, writable=False, cdrom=True)


@pytest.mark.parametrize(
    "text", [",hdc:cdrom,r", "vdev=hdc,cdrom", ",,hdc,cdrom", "x,empty,hdc,cdrom", "phy:,hdc:cdrom,r"]
)
def test_a_cdrom_may_be_empty(text: str) -> None:
    assert disk(text) == DiskConfig("", "hdc", HDC, DiskFormat.EMPTY, writable=False, cdrom=True)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("x.img,qcow2,xvda,r", {"target": "x.img", "format": DiskFormat.QCOW2, "writable": False}),
        ("tap:qcow2:/x,xvda", {"format": DiskFormat.QCOW2}),
        ("iscsi:iqn.x:y,xvda", {"target": "iqn.x:y", "script": "block-iscsi"}),
        ("script=drbd,vdev=xvda,target=foo bar ", {"target": "foo bar ", "script": "drbd"}),
        ("vdev=xvda,target=/a,b=c:d", {"target": "/a,b=c:d"}),
        ("rbd:pool/image,raw,xvda", {"target": "rbd:pool/image"}),
        ("/x:y,raw,xvda", {"target": "/x:y"}),
        (
            "/x,raw,xvda,w,no-discard,direct-io-safe,untrusted",
            {"discard": False, "direct_io_safe": True, "trusted": False},
        ),
        ("discard,trusted,/x,raw,xvda", {"discard": True, "trusted": True}),
        ("/x,,xvda,backendtype=qdisk,backend=0,specification=xen", {"backendtype": DiskBackend.QDISK}),
    ],
)
def test_parameters(text: str, fields: dict[str, object]) -> None:
    found = disk(text)
    assert {name: getattr(found, name) for name in fields} == fields
    assert found.devid == XVDA
    assert str(found.position) == "f:7"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is no vdev, such as xvda: path,format,vdev,access"),
        ("/x,raw", "there is no vdev"),
        ("/x,foo,xvda", 'format "foo" is none of raw, qcow, qcow2, vhd, qed, empty'),
        ("/x,raw,xvda,x", 'access "x" is none of ro, r, rw, w'),
        ("/x,raw,xvda,w,x", 'too many positional parameters, "x" is one'),
        ("/x,raw,xvda,w,fornat=raw", "unknown parameter \"fornat\"; did you mean 'format'?"),
        ("/a=b,raw,xvda", "unknown parameter \"/a\"; a path with '=' in it is written last, as target=..."),
        ("/x,raw,xvda,vdev=xvdb", 'vdev is given twice, as "xvda" and "xvdb"'),
        ("/x,raw,xvda,format=qcow2", 'format is given twice, as "raw" and "qcow2"'),
        ("/x,raw,xvda:tape", 'devtype "tape" is none of cdrom, disk'),
        ("foo:/x,xvda,w", "unknown prefix foo: before the path; write the path last, as target=..."),
        ("/x,raw,xvdaa1x", 'vdev "xvdaa1x": a disk is named by lower-case letters, as in xvda'),
        (",raw,xvda", "there is no target; only a cdrom may be empty"),
        ("/x,raw,xvda,colo-host=1", "colo-host is refused: there is no replication (COLO)"),
        ("/x,raw,xvda,specification=virtio", "virtio is refused: disks are Xen block devices"),
        ("/x,raw,xvda,backendtype=standalone", "virtio is refused"),
        ("/x,raw,xvda,backend=storage", "backend=storage is refused: backends are part of xenpy"),
        ("," * 8192 + "x", "it is longer than 8192 characters"),
    ],
)
def test_refusals_name_the_place_and_the_fault(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        disk(text)
    assert str(caught.value).startswith('f:7: disk "')
    assert f'": {message}' in str(caught.value)


@pytest.mark.parametrize(
    ("vdev", "number"),
    [
        ("xvda", 202 << 8),
        ("xvdp15", 202 << 8 | 15 << 4 | 15),
        ("xvdq", 1 << 28 | 16 << 8),
        ("xvda16", 1 << 28 | 16),
        ("xvdtq37", 1 << 28 | 536 << 8 | 37),
        ("d0", 202 << 8),
        ("d0p0", 202 << 8),
        ("d1p2", 202 << 8 | 1 << 4 | 2),
        ("d536p37", 1 << 28 | 536 << 8 | 37),
        ("d1048575p255", 1 << 28 | 1048575 << 8 | 255),
        ("sdb3", 8 << 8 | 1 << 4 | 3),
        ("hda", 3 << 8),
        ("hdb63", 3 << 8 | 1 << 6 | 63),
        ("hdc2", 22 << 8 | 2),
        ("hdd", 22 << 8 | 1 << 6),
        ("51712", 51712),
        ("0xca00", 51712),
        ("0145000", 51712),
    ],
)
def test_device_numbers(vdev: str, number: int) -> None:
    assert device_number(vdev) == number


@pytest.mark.parametrize(
    "vdev",
    [
        *("", "xvd", "xvdA", "xvda01", "xvda256", "xvdzzzzz", "xvd" + "z" * 50, "xvda\u0661"),
        *("d", "d1p", "d1p02", "d1048576", "sdq", "sda16", "hde", "hda64", "fda", "-1", "0x20000000", "1x"),
    ],
)
def test_names_that_mean_no_device(vdev: str) -> None:
    with pytest.raises(ValueError, match=r"^[a-z]"):
        device_number(vdev)
