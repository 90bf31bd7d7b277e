"""disk= strings: positional and named parameters, flags, and the prefixes of xend's day.

Ref: xl-disk-configuration(5); behaviour compared with libxlutil 4.17, which knows no trusted/untrusted flags yet
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from xenpy.config.specs import MAX_SPEC, OTHER_BACKEND, is_own_backend
from xenpy.config.text import fail, nearest, quote
from xenpy.config.vdev import device_number

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xenpy.config.grammar import Atom, Position
    from xenpy.errors import ConfigError

_POSITIONAL = ("target", "format", "vdev", "access")
_NAMED = frozenset((*_POSITIONAL, "devtype", "backend", "backendtype", "script", "specification"))
_FLAGS: Mapping[str, tuple[str, str]] = {  # the parameter that each flag stands for
    "cdrom": ("devtype", "cdrom"),
    "direct-io-safe": ("direct-io-safe", "1"),
    "discard": ("discard", "1"),
    "no-discard": ("discard", ""),
    "trusted": ("trusted", "1"),
    "untrusted": ("trusted", ""),
}
_COLO = frozenset(("colo", "no-colo", "colo-host", "colo-port", "colo-export", "active-disk", "hidden-disk"))
_ACCESS = {"ro": False, "r": False, "rw": True, "w": True}
_DEVTYPES = ("cdrom", "disk")
_REPEATABLE = ("format", "devtype")  # with the same value, since prefixes and suffixes set them too

_FORMAT_PREFIXES = ("raw", "qcow", "qcow2", "vhd")
_SCRIPT_PREFIXES = ("iscsi", "nbd", "enbd", "drbd")
_IGNORED_PREFIXES = ("tapdisk", "tap2", "tap", "aio", "ioemu", "file", "phy")
_BLANKS = " \t"


class DiskFormat(StrEnum):
    """Format of a disk's image; `EMPTY` is a CD drive with nothing in it."""

    RAW = "raw"
    QCOW = "qcow"
    QCOW2 = "qcow2"
    VHD = "vhd"
    QED = "qed"
    EMPTY = "empty"


class DiskBackend(StrEnum):
    """The implementation a disk asks for with backendtype=."""

    PHY = "phy"
    TAP = "tap"
    QDISK = "qdisk"
    STANDALONE = "standalone"


@dataclass(frozen=True, slots=True)
class DiskConfig:
    """One disk= entry.

    `target` is as written: the argument of `script`, or a path, which is looked for in the current directory and then
    under /dev unless it is absolute. `devid` is the number of `vdev` in xenstore. `discard` is None when not given,
    which means yes.

    Ref: xl-disk-configuration(5), xen-vbd-interface(7)
    """

    target: str
    vdev: str
    devid: int
    format: DiskFormat = DiskFormat.RAW
    writable: bool = True
    cdrom: bool = False
    backendtype: DiskBackend | None = None
    script: str | None = None
    direct_io_safe: bool = False
    discard: bool | None = None
    trusted: bool = True
    position: Position | None = field(default=None, compare=False)


class _DiskSpec:
    """The parameters of one disk string, as written."""

    def __init__(self, atom: Atom) -> None:
        self._atom = atom
        self.parameters: dict[str, str] = {}
        if len(atom.text) > MAX_SPEC:
            raise self.fail(f"it is longer than {MAX_SPEC} characters")
        rest = atom.text.lstrip(_BLANKS)
        while rest:
            if rest.startswith("target="):
                self._set("target", rest.removeprefix("target="))
                break
            part, _, rest = rest.partition(",")
            self._parameter(part.rstrip(_BLANKS))
            rest = rest.lstrip(_BLANKS)

    def fail(self, message: str) -> ConfigError:
        return fail(self._atom.position, f"disk {quote(self._atom.text)}: {message}")

    def _set(self, name: str, value: str) -> None:
        if name == "format":
            value = value or DiskFormat.RAW
        earlier = self.parameters.get(name)
        if earlier and (earlier != value or name not in _REPEATABLE):
            raise self.fail(f"{name} is given twice, as {quote(earlier)} and {quote(value)}")
        self.parameters[name] = value

    def _parameter(self, part: str) -> None:
        name, equals, value = part.partition("=")
        if name in _COLO:
            raise self.fail(f"{name} is refused: there is no replication (COLO)")
        if not equals and part in _FLAGS:
            name, value = _FLAGS[part]
            self.parameters[name] = value
        elif equals:
            if name not in _NAMED:
                hint = nearest(name, _NAMED) or "; a path with '=' in it is written last, as target=..."
                raise self.fail(f"unknown parameter {quote(name)}{hint}")
            self._set(name, value)
        else:
            self._positional(part)

    def _positional(self, part: str) -> None:
        if "target" not in self.parameters:
            self._set("target", self._without_prefixes(part))
            return
        name = next((name for name in _POSITIONAL if name not in self.parameters), None)
        if name == "format" and not self.parameters["target"] and ":" in part:
            self._set("format", DiskFormat.EMPTY)
            name = "vdev"  # xend's ",hdc:cdrom,r", an empty drive
        if name is None:
            raise self.fail(f"too many positional parameters, {quote(part)} is one")
        if name == "vdev":
            part, colon, devtype = part.removeprefix("ioemu:").partition(":")
            if colon:
                self._set("devtype", devtype)
        self._set(name, part)

    def _without_prefixes(self, target: str) -> str:
        """Return `target` without xend's prefixes; after one of them, no format is expected as a positional."""
        rest = target
        while (prefix := _prefix(rest)) is not None:
            after = rest[len(prefix) + 1 :]
            if prefix in _FORMAT_PREFIXES:
                self._set("format", prefix)
            elif prefix in _SCRIPT_PREFIXES:
                self._set("script", f"block-{prefix}")
            elif prefix not in _IGNORED_PREFIXES:
                if after and not after.startswith("/"):
                    break  # "rbd:pool/image" is for the backend to understand
                raise self.fail(f"unknown prefix {prefix}: before the path; write the path last, as target=...")
            rest = after
        if rest != target:
            self.parameters.setdefault("format", DiskFormat.RAW)
        return rest


def _prefix(target: str) -> str | None:
    """Return the letters and digits before the first colon of `target`, if it begins with a lower-case letter."""
    prefix, colon, _ = target.partition(":")
    plain = prefix.isascii() and prefix.isalnum() and prefix.islower() and not prefix[0].isdigit()
    return prefix if colon and plain else None


def parse_disk(atom: Atom) -> DiskConfig:
    """Parse one element of disk=. Raises ConfigError naming the place, the string and what is wrong in it."""
    spec = _DiskSpec(atom)
    given = {name: value for name, value in spec.parameters.items() if value}

    def one_of(name: str, choices: Mapping[str, object]) -> str | None:
        value = given.get(name)
        if value is not None and value not in choices:
            raise spec.fail(f"{name} {quote(value)} is none of {', '.join(choices)}")
        return value

    cdrom = one_of("devtype", dict.fromkeys(_DEVTYPES)) == "cdrom"
    image_format = one_of("format", {kind.value: kind for kind in DiskFormat})
    backendtype = one_of("backendtype", {kind.value: kind for kind in DiskBackend})
    access = one_of("access", _ACCESS)
    if one_of("specification", dict.fromkeys(("xen", "virtio"))) == "virtio" or backendtype == DiskBackend.STANDALONE:
        raise spec.fail("virtio is refused: disks are Xen block devices")
    if not is_own_backend(given.get("backend", "")):
        raise spec.fail(f"backend={given['backend']} is refused: {OTHER_BACKEND}")
    target, vdev = given.get("target", ""), given.get("vdev")
    if vdev is None:
        raise spec.fail("there is no vdev, such as xvda: path,format,vdev,access")
    try:
        devid = device_number(vdev)
    except ValueError as error:
        raise spec.fail(f"vdev {quote(vdev)}: {error}") from None
    empty = not target or image_format == DiskFormat.EMPTY
    if empty and not cdrom:
        raise spec.fail("there is no target; only a cdrom may be empty")
    return DiskConfig(
        target="" if empty else target,
        vdev=vdev,
        devid=devid,
        format=DiskFormat.EMPTY if empty else DiskFormat(image_format or DiskFormat.RAW),
        writable=not cdrom and _ACCESS[access or "rw"],
        cdrom=cdrom,
        backendtype=DiskBackend(backendtype) if backendtype else None,
        script=given.get("script"),
        direct_io_safe="direct-io-safe" in given,
        discard=bool(spec.parameters["discard"]) if "discard" in spec.parameters else None,
        trusted="trusted" in given or "trusted" not in spec.parameters,
        position=atom.position,
    )
