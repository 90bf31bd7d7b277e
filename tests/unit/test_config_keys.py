"""Keys: known, unknown, refused, ignored; and the document that lists them."""

from __future__ import annotations

from pathlib import Path

import pytest

from xenpy.config import DomainConfig, build, known_keys, parse_text, support_table
from xenpy.config.docs import render
from xenpy.config.keys import Kind, Status, table
from xenpy.errors import ConfigError

DOCUMENT = Path(__file__).parents[2] / "docs" / "config.md"
GUEST = "name='g'; type='{}'; kernel='k'; memory=64\n"


def domain(text: str, kind: str = "pvh", *, lenient: bool = False) -> DomainConfig:
    return build(parse_text(GUEST.format(kind) + text, "f"), "f", lenient=lenient)


def refusal(text: str, kind: str = "pvh") -> str:
    with pytest.raises(ConfigError) as caught:
        domain(text, kind)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("memroy=64", "f:2: unknown key 'memroy'; did you mean 'memory'?"),
        ("\nqqqqqqq=1", "f:3: unknown key 'qqqqqqq'"),
        ("pci=['00:1f.0']", "f:2: key 'pci' is refused: PCI devices cannot be passed through: that takes Xen's IOMMU"),
        ("vtpm=['backend=x']", "f:2: key 'vtpm' is refused: there is no vTPM stub domain to serve it"),
        (
            "bootloader='pygrub'",
            "f:2: key 'bootloader' is refused: kernels are not read out of disks: copy kernel and initrd out",
        ),
        ("boot='c'", "f:2: key 'boot' is not for PVH guests: HVM only: order of boot devices"),
        ("device_tree='x'", "f:2: key 'device_tree' is not for PVH guests: Arm only: device tree"),
        ("e820_host=1", "f:2: key 'e820_host' is for PV guests only: it matters with PCI passthrough only"),
        ("disk='/x,,xvda'", "f:2: key 'disk' takes a list: write [ ... ] around it"),
        ("memory=[64]", "f:2: key 'memory' takes one number, not a list"),
        ("vif=[['a']]", "f:2: key 'vif': element 0 is a list; a string is expected"),
    ],
)
def test_refusals_name_key_place_and_reason(text: str, message: str) -> None:
    assert refusal(text).startswith(message)


@pytest.mark.parametrize(
    "text", ["pci=[]", "bootloader=''", "boot=''", "usb=0", "passthrough='disabled'", "nestedhvm=0"]
)
def test_a_refused_key_may_ask_for_nothing(text: str) -> None:
    domain(text)


def test_pv_only_and_pvh_only_keys() -> None:
    domain("e820_host=1", "pv")
    domain("timer_mode='no_delay_for_missed_ticks'", "pvh")
    assert refusal("timer_mode=1", "pv").startswith("f:2: key 'timer_mode' is for PVH guests only")


def test_ignored_keys_are_reported_with_their_reason() -> None:
    (ignored,) = domain("cpu_weight=512").ignored
    assert ignored.key == "cpu_weight"
    assert str(ignored.position) == "f:2"
    assert ignored.reason == "the host's scheduler decides"


def test_lenient_ignores_what_xl_ignores_and_no_more() -> None:
    config = domain("memroy=1\nboot='c'", lenient=True)
    assert config.warnings == (
        "f:2: ignored, as xl does: unknown key 'memroy'; did you mean 'memory'?",
        "f:3: ignored, as xl does: key 'boot' is not for PVH guests: HVM only: order of boot devices",
    )
    with pytest.raises(ConfigError, match="key 'pci' is refused"):
        domain("pci=['00:1f.0']", lenient=True)


def test_every_key_has_a_row_with_a_note() -> None:
    assert len(known_keys()) == len(table()) > 150
    for name, key in table().items():
        assert name == key.name
        assert key.note
        assert bool(key.types) == (key.status is not Status.FOREIGN)


@pytest.mark.parametrize("kind", ["pv", "pvh"])
def test_every_row_is_in_force(kind: str) -> None:
    """Each key, asking for something, ends as its row says."""
    for key in table().values():
        if key.status is Status.ACTED:
            continue
        text = f"{key.name} = {'[1]' if key.kind is Kind.LIST else '1'}"
        if key.status is Status.IGNORED and kind in key.types:
            assert [ignored.key for ignored in domain(text, kind).ignored] == [key.name]
        else:
            assert refusal(text, kind).startswith(f"f:2: key '{key.name}' is ")


def test_the_keys_of_the_manual_are_known() -> None:
    keys = {
        "name type builder pool vcpus maxvcpus cpus cpus_soft cpu_weight cap memory maxmem vnuma on_poweroff on_reboot",
        "on_watchdog on_crash on_soft_reset kernel ramdisk cmdline root extra firmware pvshim pvshim_path pvshim_cmdline",
        "pvshim_extra uuid seclabel init_seclabel max_grant_frames max_maptrack_frames max_grant_version nomigrate",
        "driver_domain device_tree passthrough xend_suspend_evtchn_compat vmtrace_buf_kb vpmu disk vif vtpm p9 pvcalls vfb",
        "channel rdm usbctrl usbdev pci pci_permissive pci_msitranslate pci_seize pci_power_mgmt gfx_passthru dtdev ioports",
        "iomem irqs max_event_channels vdispl dm_restrict device_model_user vsnd vkb tee bootloader bootloader_args",
        "e820_host boot hdtype hap oos shadow_memory bios pae acpi apic nx hpet altp2m nestedhvm cpuid tsc_mode localtime",
        "rtc_timeoffset timer_mode mmio_hole viridian videoram vga vnc sdl opengl nographic spice serial soundhw usb",
        "device_model_version stubdomain_kernel gic_version vuart mca_caps msr_relaxed virtio xenstore_quota",
    }
    missing = {name for line in keys for name in line.split()} - set(known_keys())
    assert not missing


def test_the_document_lists_the_keys_as_they_are() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert render(text) == text, "run: python -m xenpy.config.docs docs/config.md"
    assert support_table() in text


def test_a_document_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks"):
        render("# no marks")
