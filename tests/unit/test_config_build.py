"""Defaults, ranges and the rules between keys, as `xl create -n` of Xen 4.17 shows them."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest

from xenpy.config import Action, DomainConfig, GuestType, TscMode, build, parse_text
from xenpy.errors import ConfigError

MINIMAL = "name='g'; kernel='k'\n"


def domain(text: str = "", prefix: str = MINIMAL, type_override: str | None = None) -> DomainConfig:
    return build(parse_text(prefix + text, "f"), "f", type_override=type_override)


def refusal(text: str, prefix: str = MINIMAL, type_override: str | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        domain(text, prefix, type_override)
    return str(caught.value)


def test_defaults_are_xls() -> None:
    config = domain()
    assert (config.name, config.type, config.kernel, config.ramdisk) == ("g", GuestType.PV, Path("k"), None)
    assert (config.memory_mib, config.maxmem_mib, config.vcpus, config.maxvcpus) == (32, 32, 1, 1)
    actions = (config.on_poweroff, config.on_reboot, config.on_watchdog, config.on_crash, config.on_soft_reset)
    assert actions == (Action.DESTROY, Action.RESTART, Action.DESTROY, Action.DESTROY, Action.SOFT_RESET)
    limits = (config.max_grant_frames, config.max_maptrack_frames, config.max_grant_version, config.max_event_channels)
    assert limits == (64, 1024, 2, 1023)
    assert (config.cmdline, config.tsc_mode, config.acpi, config.nomigrate) == ("", TscMode.DEFAULT, True, False)
    assert (config.xen_version, config.kvm_xen, config.cpus, config.disks) == ((4, 20), None, (), ())
    assert config.warnings == ("memory= is not set: the guest gets 32 MiB, as with xl",)


@pytest.mark.parametrize(("text", "kind"), [("p", "pv"), ("pv", "pv"), ("pvh", "pvh")])
def test_type_is_matched_by_prefix(text: str, kind: str) -> None:
    assert domain(f"type='{text}'").type == kind
    assert domain("type='hvm'", type_override=text).type == kind


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "type='hvm'",
            "f:2: key 'type': hvm is refused: HVM guests need an emulated PC, which xenpy has not: use pvh, or pv",
        ),
        ("type=''", "f:2: key 'type': hvm is refused"),
        ("builder='hvm'", "f:2: key 'builder': hvm is refused"),
        ("type='PVH'", "f:2: key 'type': \"PVH\" is neither pv nor pvh"),
        ("type='pvhx'", "f:2: key 'type': \"pvhx\" is neither pv nor pvh"),
        ("type=['pv']", "f:2: key 'type' takes one value, not a list"),
        ("builder='linux'", "f:2: key 'builder': \"linux\" is neither generic nor hvm; write type="),
        ("builder='generic'\ntype='pvh'", "f:3: key 'type': \"pvh\" contradicts builder="),
    ],
)
def test_type_refusals(text: str, message: str) -> None:
    assert refusal(text).startswith(message)


def test_a_type_override_is_checked_too() -> None:
    assert refusal("", type_override="xen") == 'guest type "xen" is neither pv nor pvh'
    assert refusal("", type_override="hvm").startswith("guest type hvm is refused: ")


def test_builder_is_deprecated() -> None:
    config = domain("memory=64\nbuilder='generic'")
    assert config.type is GuestType.PV
    assert config.warnings == ("f:3: key 'builder': it is deprecated: write type=\"pv\"",)


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("memory=64", (64, 64)),
        ("maxmem=128", (128, 128)),
        ("memory=64; maxmem=128", (64, 128)),
        ("memory='0x40'", (64, 64)),
        ("memory=0100", (64, 64)),
    ],
)
def test_memory(text: str, sizes: tuple[int, int]) -> None:
    config = domain(text)
    assert (config.memory_mib, config.maxmem_mib) == sizes
    assert not config.warnings


@pytest.mark.parametrize(
    ("text", "counts"),
    [("vcpus=3", (3, 3)), ("maxvcpus=4", (1, 4)), ("vcpus=2; maxvcpus=128", (2, 128))],
)
def test_vcpus(text: str, counts: tuple[int, int]) -> None:
    config = domain(text)
    assert (config.vcpus, config.maxvcpus) == counts


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("memory='64M'", "f:2: key 'memory': \"64M\" is not a number from 1 to 8388608"),
        ("memory=08", "f:2: key 'memory': \"08\" is not a number"),
        ("memory=0", "f:2: key 'memory': \"0\" is not a number"),
        ("memory='-5'", "f:2: key 'memory': \"-5\" is not a number"),
        ("memory=99999999999999999999", "f:2: key 'memory': "),
        ("memory='1_0'", "f:2: key 'memory': \"1_0\" is not a number"),
        ("memory='\u0661'", "f:2: key 'memory': \"\u0661\" is not a number"),
        ("memory='" + "1" * 5000 + "'", "f:2: key 'memory': "),
        ("memory=64\nmemory+=5", "f:3: key 'memory': += joins strings and lists, not numbers"),
        ("acpi+=0", "f:2: key 'acpi': += joins strings and lists, not numbers"),
        ("memory=64\nmaxmem=32", "f:3: key 'maxmem': 32 MiB is less than memory= 64 MiB"),
        ("vcpus=0", "f:2: key 'vcpus': \"0\" is not a number from 1 to 128"),
        ("vcpus=3; maxvcpus=2", "f:2: key 'maxvcpus': 2 is less than vcpus= 3"),
        (
            "on_crash='reboot'",
            "f:2: key 'on_crash': \"reboot\" is none of destroy, restart, rename-restart, preserve, ",
        ),
        ("uuid='x'", "f:2: key 'uuid': \"x\" is no UUID; it is like 1c7ada8e-"),
        ("max_grant_version=3", "f:2: key 'max_grant_version': \"3\" is not a number from 1 to 2"),
        ("max_event_channels=131072", "f:2: key 'max_event_channels': \"131072\" is not a number from 1 to 131071"),
        (
            "tsc_mode='native_paravirt'",
            "f:2: key 'tsc_mode': \"native_paravirt\" is none of default, always_emulate, native",
        ),
        ("tsc_mode=3", "f:2: key 'tsc_mode': \"3\" is none of"),
        ("acpi='yes'", "f:2: key 'acpi': \"yes\" is neither 0 nor 1"),
        ("xenpy_xen_version='4'", "f:2: key 'xenpy_xen_version': \"4\" is not like 4.20"),
        ("xenpy_xen_version='4.70000'", "f:2: key 'xenpy_xen_version': "),
        ("xenstore_quota=['nodes']", "f:2: key 'xenstore_quota': \"nodes\" is not like nodes=1000"),
        ("disk=['/a,,xvda','/b,,51712']", 'f:2: disk "/b,,51712": 51712 is also that of the disk at f:2'),
    ],
)
def test_values_out_of_range(text: str, message: str) -> None:
    assert refusal(text).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kernel='k'", "f: key 'name' is missing: the name of the domain"),
        ("name='g'", "f: key 'kernel' is missing: the path of a kernel image"),
        ("name='g'; kernel=''", "f: key 'kernel' is missing"),
        ("name=''; kernel='k'", "f:1: key 'name': \"\" is not 1 to 255 printable characters without '/'"),
        ("name='a/b'; kernel='k'", "f:1: key 'name': \"a/b\" is not"),
        ("name='a\\n'; kernel='k'", "f:1: key 'name': \"a\\n\" is not"),
    ],
)
def test_name_and_kernel_are_mandatory(text: str, message: str) -> None:
    assert refusal(text, prefix="").startswith(message)


@pytest.mark.parametrize(
    ("text", "cmdline"),
    [
        ("cmdline='a b'", "a b"),
        ("root='/dev/xvda'", "root=/dev/xvda"),
        ("extra='a b'", "a b"),
        ("extra='e'; root='r'", "root=r e"),
        ("root=''", "root="),
        ("cmdline='c'; root='r'; extra='e'", "c"),
        ("cmdline=''; root='r'", ""),
    ],
)
def test_cmdline(text: str, cmdline: str) -> None:
    assert domain(text).cmdline == cmdline


def test_cmdline_over_root_and_extra_warns() -> None:
    warnings = domain("memory=64; cmdline='c'; root='r'\nextra='e'").warnings
    assert warnings == (
        "f:2: key 'root': it is ignored in favour of cmdline=",
        "f:3: key 'extra': it is ignored in favour of cmdline=",
    )


def test_tsc_mode_as_a_number_is_deprecated() -> None:
    config = domain("memory=64; tsc_mode=1")
    assert config.tsc_mode is TscMode.ALWAYS_EMULATE
    assert config.warnings == ("f:2: key 'tsc_mode': a number is deprecated: write tsc_mode=\"always_emulate\"",)


def test_the_other_keys() -> None:
    config = domain(
        "uuid='1c7ada8e-3426-4fd7-93ec-9e03f26a85ef'; ramdisk='r'; on_reboot='coredump-restart'; localtime=1;"
        "rtc_timeoffset='-3600'; acpi=0; nomigrate=1; msr_relaxed=1; xenpy_xen_version='4.17'; xenpy_kvm_xen=0;"
        "xenstore_quota=['nodes=50']; xenstore_feature_mask=3; max_grant_frames=5; max_maptrack_frames=0"
    )
    assert config.uuid == UUID("1c7ada8e-3426-4fd7-93ec-9e03f26a85ef")
    assert (config.ramdisk, config.on_reboot) == (Path("r"), Action.COREDUMP_RESTART)
    assert (config.localtime, config.rtc_timeoffset, config.acpi) == (True, -3600, False)
    assert (config.nomigrate, config.msr_relaxed) == (True, True)
    assert (config.xen_version, config.kvm_xen) == ((4, 17), False)
    assert (config.xenstore_quota, config.xenstore_feature_mask) == ((("nodes", 50),), 3)
    assert (config.max_grant_frames, config.max_maptrack_frames) == (5, 0)


def test_uuids_are_fresh() -> None:
    assert domain().uuid != domain().uuid


def test_where_names_the_place_of_a_key() -> None:
    config = domain("memory=64")
    assert config.where("memory") == "f:2"
    assert config.where("ramdisk") == "g"
