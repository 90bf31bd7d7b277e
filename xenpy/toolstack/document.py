"""A domain's configuration as `xl list -l` prints it: the members of libxl's domain_config that mean something here.

Ref: libxl_types.idl, libxl_domain_config; xl(1), list
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xenpy.config import DiskConfig, DomainConfig, VifConfig

_KIB_PER_MIB = 1 << 10


def document(config: DomainConfig) -> dict[str, Any]:
    """Return what json.dumps takes."""
    kind = config.type.value
    build: dict[str, Any] = {
        "max_vcpus": config.maxvcpus,
        "avail_vcpus": list(range(config.vcpus)),
        "max_memkb": config.maxmem_mib * _KIB_PER_MIB,
        "target_memkb": config.memory_mib * _KIB_PER_MIB,
        "tsc_mode": config.tsc_mode.value,
        "event_channels": config.max_event_channels,
        "kernel": str(config.kernel),
        "cmdline": config.cmdline,
        "max_grant_frames": config.max_grant_frames,
        "max_maptrack_frames": config.max_maptrack_frames,
        "max_grant_version": config.max_grant_version,
        f"type.{kind}": {},
    }
    if config.ramdisk is not None:
        build["ramdisk"] = str(config.ramdisk)
    whole: dict[str, Any] = {
        "c_info": {"type": kind, "name": config.name, "uuid": str(config.uuid)},
        "b_info": build,
        "on_poweroff": _action(config.on_poweroff.value),
        "on_reboot": _action(config.on_reboot.value),
        "on_watchdog": _action(config.on_watchdog.value),
        "on_crash": _action(config.on_crash.value),
        "on_soft_reset": _action(config.on_soft_reset.value),
    }
    if config.disks:
        whole["disks"] = [_disk(disk) for disk in config.disks]
    if config.vifs:
        whole["nics"] = [_nic(vif) for vif in config.vifs]
    return whole


def _action(name: str) -> str:
    return name.replace("-", "_")


def _disk(disk: DiskConfig) -> dict[str, Any]:
    return {
        "pdev_path": disk.target,
        "vdev": disk.vdev,
        "format": disk.format.value,
        "readwrite": int(disk.writable),
        "is_cdrom": int(disk.cdrom),
    }


def _nic(vif: VifConfig) -> dict[str, Any]:
    nic: dict[str, Any] = {"devid": vif.devid, "mac": vif.mac}
    if vif.bridge is not None:
        nic["bridge"] = vif.bridge
    if vif.mtu is not None:
        nic["mtu"] = vif.mtu
    return nic
