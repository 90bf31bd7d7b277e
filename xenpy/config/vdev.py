"""Virtual device names of disks and the numbers that stand for them in xenstore.

Ref: xen-vbd-interface(7)
"""

from __future__ import annotations

from xenpy.config.text import parse_integer

_LETTERS = "abcdefghijklmnopqrstuvwxyz"

_XVD_EXTENDED = 1 << 28
_XVD_MAJOR = 202
_SD_MAJOR = 8
_HD_MAJORS = (3, 22)  # first and second IDE channel, two disks each

_SHORT = 16  # disks and partitions of the 4-bit forms
_EXTENDED_DISKS = 1 << 20
_EXTENDED_PARTITIONS = 1 << 8
_HD_PARTITIONS = 64
_RESERVED = 2 << 28  # numbers from here on mean nothing yet

_LONGEST = 16  # characters; d1048575p255 has 12


def device_number(vdev: str) -> int:
    """Return the xenstore number of `xvda`, `sdb3`, `hdc2`, `d5p1` or of a number in any base.

    Raises ValueError with the reason when the name means no device.
    """
    if len(vdev) > _LONGEST:
        raise ValueError("it is too long")
    number = parse_integer(vdev)
    if number is not None:
        if not 0 <= number < _RESERVED:
            raise ValueError("the number is out of range")
        return number
    for prefix, encode in (("xvd", _xvd), ("sd", _sd), ("hd", _hd)):
        if vdev.startswith(prefix):
            letters = vdev[len(prefix) :].rstrip("0123456789")
            return encode(_disk_index(letters), _decimal(vdev[len(prefix) + len(letters) :], default=0))
    if vdev.startswith("d"):
        disk, p, partition = vdev[1:].partition("p")
        return _xvd(_decimal(disk), _decimal(partition) if p else 0)
    raise ValueError("expected xvda, sda, hda, d0p1 or a number")


def _disk_index(letters: str) -> int:
    """Count disks as spreadsheets count columns: a is 0, z is 25, aa is 26."""
    if not letters or not set(_LETTERS).issuperset(letters):
        raise ValueError("a disk is named by lower-case letters, as in xvda")
    index = 0
    for letter in letters:
        index = index * len(_LETTERS) + _LETTERS.index(letter) + 1
    return index - 1


def _decimal(digits: str, default: int | None = None) -> int:
    if not digits and default is not None:
        return default
    if not digits or not set("0123456789").issuperset(digits) or (digits[0] == "0" and digits != "0"):
        raise ValueError("the disk and partition are plain decimal numbers")
    return int(digits)


def _xvd(disk: int, partition: int) -> int:
    if disk < _SHORT and partition < _SHORT:
        return _XVD_MAJOR << 8 | disk << 4 | partition
    if disk < _EXTENDED_DISKS and partition < _EXTENDED_PARTITIONS:
        return _XVD_EXTENDED | disk << 8 | partition
    raise ValueError(f"disks go up to {_EXTENDED_DISKS - 1} and partitions up to {_EXTENDED_PARTITIONS - 1}")


def _sd(disk: int, partition: int) -> int:
    if disk < _SHORT and partition < _SHORT:
        return _SD_MAJOR << 8 | disk << 4 | partition
    raise ValueError("sd disks go up to sdp and partition 15; use xvd names")


def _hd(disk: int, partition: int) -> int:
    if disk < 2 * len(_HD_MAJORS) and partition < _HD_PARTITIONS:
        return _HD_MAJORS[disk // 2] << 8 | disk % 2 << 6 | partition
    raise ValueError("hd disks go up to hdd and partition 63; use xvd names")
