"""The table of keys: one row each, grouped by what becomes of them.

Ref: xl.cfg(5) of Xen 4.17, with the keys that later releases added
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xenpy.config.keys import Key, Kind, Status
from xenpy.config.model import GuestType

if TYPE_CHECKING:
    from collections.abc import Mapping

_STRING, _NUMBER, _BOOLEAN, _LIST, _EITHER = Kind.STRING, Kind.NUMBER, Kind.BOOLEAN, Kind.LIST, Kind.EITHER
_BOTH = (GuestType.PV, GuestType.PVH)
_PV = (GuestType.PV,)
_PVH = (GuestType.PVH,)

_NO_SCHEDULER = "the host's scheduler decides"
_NO_MODEL = "there is no device model"
_NO_SHIM = "xenpy runs PV guests itself: use type=pv"
_HVM = "HVM only: "
_ARM = "Arm only: "

# name, kind, guest types, what it means
_ACTED = (
    ("name", _STRING, _BOTH, "name of the domain; mandatory"),
    ("type", _STRING, _BOTH, "pv or pvh; the default is pv, as in xl"),
    ("builder", _STRING, _BOTH, "deprecated form of type="),
    ("uuid", _STRING, _BOTH, "UUID of the domain; a fresh one by default"),
    ("kernel", _STRING, _BOTH, "kernel image, ELF or bzImage; mandatory, relative to the current directory"),
    ("ramdisk", _STRING, _BOTH, "initial ramdisk"),
    ("cmdline", _STRING, _BOTH, "kernel command line; replaces root= and extra="),
    ("root", _STRING, _BOTH, "added to the command line as root=..."),
    ("extra", _STRING, _BOTH, "added to the command line after root="),
    ("memory", _NUMBER, _BOTH, "RAM at start in MiB; 32 by default, or maxmem"),
    ("maxmem", _NUMBER, _BOTH, "RAM the guest may balloon up to, in MiB; memory by default"),
    ("vcpus", _NUMBER, _BOTH, "vCPUs online at start; 1 by default"),
    ("maxvcpus", _NUMBER, _BOTH, "vCPUs that can be brought online; vcpus by default"),
    ("cpus", _EITHER, _BOTH, "host CPUs that the vCPUs run on"),
    ("on_poweroff", _STRING, _BOTH, "action after a power-off; destroy by default"),
    ("on_reboot", _STRING, _BOTH, "action after a reboot; restart by default"),
    ("on_watchdog", _STRING, _BOTH, "action when the watchdog fires; destroy by default"),
    ("on_crash", _STRING, _BOTH, "action after a crash; destroy by default"),
    ("on_soft_reset", _STRING, _BOTH, "action on a soft reset (kexec); soft-reset by default"),
    ("max_grant_frames", _NUMBER, _BOTH, "limit of grant table frames; 64 by default"),
    ("max_maptrack_frames", _NUMBER, _BOTH, "limit of frames that track mapped grants; 1024 by default"),
    ("max_grant_version", _NUMBER, _BOTH, "highest grant table version, 1 or 2; 2 by default"),
    ("max_event_channels", _NUMBER, _BOTH, "limit of event channels; 1023 by default"),
    ("tsc_mode", _STRING, _BOTH, "default, always_emulate or native"),
    ("nomigrate", _BOOLEAN, _BOTH, "advertise an invariant TSC"),
    ("cpuid", _EITHER, _BOTH, "CPUID policy, in libxl's or xend's notation"),
    ("acpi", _BOOLEAN, _BOTH, "give a PVH guest ACPI tables; on by default"),
    ("localtime", _BOOLEAN, _BOTH, "wall clock in local time"),
    ("rtc_timeoffset", _NUMBER, _BOTH, "seconds added to the wall clock"),
    ("msr_relaxed", _BOOLEAN, _BOTH, "unknown MSRs read as zero instead of faulting"),
    ("xenstore_feature_mask", _NUMBER, _BOTH, "xenstore features offered to the guest"),
    ("xenstore_quota", _LIST, _BOTH, "xenstore quotas of the domain, name=value"),
    ("disk", _LIST, _BOTH, "block devices, see xl-disk-configuration(5)"),
    ("vif", _LIST, _BOTH, "network interfaces, see xl-network-configuration(5)"),
    ("p9", _LIST, _BOTH, "shared directories over 9pfs"),
    ("channel", _LIST, _BOTH, "further consoles for programs, see xen-pv-channel(7)"),
    ("vfb", _LIST, _BOTH, "framebuffers with a VNC server"),
    ("vkb", _LIST, _BOTH, "keyboards and pointers"),
    ("vnc", _BOOLEAN, _PV, 'add a framebuffer when there is no vfb=; elsewhere write vfb=["vnc=1"]'),
    ("vnclisten", _STRING, _PV, "listening address of that framebuffer"),
    ("vncdisplay", _NUMBER, _PV, "display number of that framebuffer"),
    ("vncunused", _BOOLEAN, _PV, "let that framebuffer look for a free port"),
    ("vncpasswd", _STRING, _PV, "password of that framebuffer"),
    ("keymap", _STRING, _PV, "keyboard layout of that framebuffer"),
    ("xenpy_xen_version", _STRING, _BOTH, 'Xen version that the guest sees; "4.20" by default (xenpy only)'),
    ("xenpy_kvm_xen", _BOOLEAN, _BOTH, "use KVM's own Xen support; where present by default (xenpy only)"),
    ("xenpy_kvm_events", _BOOLEAN, _PVH, "have KVM serve events and timers; by default where it can (xenpy only)"),
)

# name, kind, guest types, reason
_IGNORED = (
    ("pool", _STRING, _BOTH, "there are no CPU pools"),
    ("cpus_soft", _EITHER, _BOTH, _NO_SCHEDULER),
    ("cpu_weight", _NUMBER, _BOTH, _NO_SCHEDULER),
    ("cap", _NUMBER, _BOTH, _NO_SCHEDULER),
    ("period", _NUMBER, _BOTH, _NO_SCHEDULER),
    ("slice", _NUMBER, _BOTH, _NO_SCHEDULER),
    ("latency", _NUMBER, _BOTH, _NO_SCHEDULER),
    ("extratime", _NUMBER, _BOTH, _NO_SCHEDULER),
    ("seclabel", _STRING, _BOTH, "there is no security policy (XSM)"),
    ("init_seclabel", _STRING, _BOTH, "there is no security policy (XSM)"),
    ("bootloader_args", _EITHER, _BOTH, "it matters with bootloader= only"),
    ("bootloader_restrict", _BOOLEAN, _BOTH, "it matters with bootloader= only"),
    ("bootloader_user", _STRING, _BOTH, "it matters with bootloader= only"),
    ("e820_host", _BOOLEAN, _PV, "it matters with PCI passthrough only"),
    ("xend_suspend_evtchn_compat", _BOOLEAN, _BOTH, "it is for HVM guests with drivers of 2010"),
    ("shadow_memory", _NUMBER, _BOTH, "KVM manages its page tables"),
    ("hap", _BOOLEAN, _BOTH, "KVM decides whether to use nested paging"),
    ("oos", _BOOLEAN, _BOTH, "KVM manages its page tables"),
    ("timer_mode", _STRING, _PVH, "PVH guests have no virtual platform timer"),
    ("pvshim_path", _STRING, _PVH, "it matters with pvshim=1 only"),
    ("pvshim_cmdline", _STRING, _PVH, "it matters with pvshim=1 only"),
    ("pvshim_extra", _STRING, _PVH, "it matters with pvshim=1 only"),
    ("pci_permissive", _BOOLEAN, _BOTH, "it matters with pci= only"),
    ("pci_msitranslate", _BOOLEAN, _BOTH, "it matters with pci= only"),
    ("pci_seize", _BOOLEAN, _BOTH, "it matters with pci= only"),
    ("pci_power_mgmt", _BOOLEAN, _BOTH, "it matters with pci= only"),
    ("sdl", _BOOLEAN, _PV, "framebuffers are served over VNC"),
    ("opengl", _BOOLEAN, _PV, "framebuffers are served over VNC"),
    ("display", _STRING, _PV, "framebuffers are served over VNC"),
    ("xauthority", _STRING, _PV, "framebuffers are served over VNC"),
    ("dm_restrict", _BOOLEAN, _BOTH, _NO_MODEL),
    ("device_model_user", _STRING, _BOTH, _NO_MODEL),
    ("device_model_version", _STRING, _BOTH, _NO_MODEL),
    ("device_model_override", _STRING, _BOTH, _NO_MODEL),
    ("device_model_stubdomain_override", _BOOLEAN, _BOTH, _NO_MODEL),
    ("device_model_stubdomain_seclabel", _STRING, _BOTH, _NO_MODEL),
    ("device_model_args", _LIST, _BOTH, _NO_MODEL),
    ("device_model_args_pv", _LIST, _BOTH, _NO_MODEL),
    ("device_model_args_hvm", _LIST, _BOTH, _NO_MODEL),
    ("stubdomain_kernel", _STRING, _BOTH, _NO_MODEL),
    ("stubdomain_cmdline", _STRING, _BOTH, _NO_MODEL),
    ("stubdomain_ramdisk", _STRING, _BOTH, _NO_MODEL),
    ("stubdomain_memory", _NUMBER, _BOTH, _NO_MODEL),
)

# name, kind, guest types, reason
_REFUSED = (
    (
        "bootloader",
        _STRING,
        _BOTH,
        "kernels are not read out of disks: copy kernel and initrd out (docs/images.md), give kernel= and ramdisk=",
    ),
    ("firmware", _STRING, _BOTH, "there is no firmware to boot from: give kernel= and ramdisk="),
    ("pvshim", _BOOLEAN, _PVH, _NO_SHIM),
    ("nestedhvm", _BOOLEAN, _PVH, "guests cannot run hardware virtualisation themselves"),
    ("vnuma", _LIST, _BOTH, "there is no virtual NUMA: leave it out for one node"),
    ("driver_domain", _BOOLEAN, _BOTH, "backends are part of xenpy, no guest can provide them"),
    ("passthrough", _STRING, _BOTH, "no hardware is passed through"),
    ("pci", _LIST, _BOTH, "PCI devices cannot be passed through: that takes Xen's IOMMU"),
    ("ioports", _LIST, _BOTH, "no hardware is passed through"),
    ("iomem", _LIST, _BOTH, "no hardware is passed through"),
    ("irqs", _LIST, _BOTH, "no hardware is passed through"),
    ("usbctrl", _LIST, _BOTH, "there is no USB backend"),
    ("usbdev", _LIST, _BOTH, "there is no USB backend"),
    ("vtpm", _LIST, _BOTH, "there is no vTPM stub domain to serve it"),
    ("pvcalls", _LIST, _BOTH, "there is no pvcalls backend: use vif="),
    ("vdispl", _LIST, _BOTH, "there is no display backend: use vfb="),
    ("vsnd", _LIST, _BOTH, "there is no sound backend"),
    ("virtio", _LIST, _BOTH, "there are no virtio devices: use disk=, vif= or p9="),
    ("vmtrace_buf_kb", _NUMBER, _BOTH, "there is no processor trace"),
    ("vpmu", _BOOLEAN, _BOTH, "there are no performance counters in guests"),
)

# name, kind, what it is for
_FOREIGN = (
    ("boot", _STRING, _HVM + "order of boot devices"),
    ("hdtype", _STRING, _HVM + "emulated disk controller"),
    ("firmware_override", _STRING, _HVM + "firmware image"),
    ("bios", _STRING, _HVM + "firmware"),
    ("bios_path_override", _STRING, _HVM + "firmware image"),
    ("pae", _BOOLEAN, _HVM + "processor feature"),
    ("apic", _BOOLEAN, _HVM + "firmware tables"),
    ("nx", _BOOLEAN, _HVM + "processor feature"),
    ("hpet", _BOOLEAN, _HVM + "emulated timer"),
    ("acpi_s3", _BOOLEAN, _HVM + "sleep state"),
    ("acpi_s4", _BOOLEAN, _HVM + "sleep state"),
    ("acpi_laptop_slate", _BOOLEAN, _HVM + "switch in the ACPI tables"),
    ("altp2m", _STRING, _HVM + "alternate views of memory"),
    ("altp2mhvm", _BOOLEAN, _HVM + "alternate views of memory"),
    ("altp2m_count", _NUMBER, _HVM + "alternate views of memory"),
    ("acpi_firmware", _STRING, _HVM + "extra ACPI tables"),
    ("smbios_firmware", _STRING, _HVM + "extra SMBIOS tables"),
    ("smbios", _LIST, _HVM + "SMBIOS strings"),
    ("ms_vm_genid", _STRING, _HVM + "generation ID for Windows"),
    ("vpt_align", _BOOLEAN, _HVM + "emulated timers"),
    ("mmio_hole", _NUMBER, _HVM + "memory layout"),
    ("rdm", _STRING, _HVM + "reserved device memory"),
    ("rdm_mem_boundary", _NUMBER, _HVM + "reserved device memory"),
    ("xen_platform_pci", _BOOLEAN, _HVM + "emulated PCI device"),
    ("xen_platform_pci_bar_uc", _BOOLEAN, _HVM + "emulated PCI device"),
    ("viridian", _EITHER, _HVM + "enlightenments for Windows"),
    ("hvm_pirq", _BOOLEAN, _HVM + "interrupts of passed-through devices"),
    ("gfx_passthru", _STRING, _HVM + "graphics passthrough"),
    ("videoram", _NUMBER, _HVM + "emulated graphics"),
    ("vga", _STRING, _HVM + "emulated graphics"),
    ("stdvga", _BOOLEAN, _HVM + "emulated graphics"),
    ("nographic", _BOOLEAN, _HVM + "emulated graphics"),
    ("spice", _BOOLEAN, _HVM + "SPICE server"),
    ("spicehost", _STRING, _HVM + "SPICE server"),
    ("spiceport", _NUMBER, _HVM + "SPICE server"),
    ("spicetls_port", _NUMBER, _HVM + "SPICE server"),
    ("spicedisable_ticketing", _BOOLEAN, _HVM + "SPICE server"),
    ("spicepasswd", _STRING, _HVM + "SPICE server"),
    ("spiceagent_mouse", _BOOLEAN, _HVM + "SPICE server"),
    ("spicevdagent", _BOOLEAN, _HVM + "SPICE server"),
    ("spice_clipboard_sharing", _BOOLEAN, _HVM + "SPICE server"),
    ("spiceusbredirection", _NUMBER, _HVM + "SPICE server"),
    ("spice_image_compression", _STRING, _HVM + "SPICE server"),
    ("spice_streaming_video", _STRING, _HVM + "SPICE server"),
    ("serial", _EITHER, _HVM + "emulated serial port; the console of xenpy needs no key"),
    ("soundhw", _STRING, _HVM + "emulated sound card"),
    ("usb", _BOOLEAN, _HVM + "emulated USB"),
    ("usbversion", _NUMBER, _HVM + "emulated USB"),
    ("usbdevice", _EITHER, _HVM + "emulated USB"),
    ("vkb_device", _BOOLEAN, _HVM + "keyboard of an emulated PC; write vkb="),
    ("vendor_device", _STRING, _HVM + "emulated PCI device"),
    ("mca_caps", _LIST, _HVM + "machine check features"),
    ("dtdev", _LIST, _ARM + "devices of the device tree"),
    ("device_tree", _STRING, _ARM + "device tree"),
    ("gic_version", _STRING, _ARM + "interrupt controller"),
    ("vuart", _STRING, _ARM + "emulated serial port"),
    ("sve", _STRING, _ARM + "vector extension"),
    ("tee", _STRING, _ARM + "trusted execution environment"),
    ("nr_spis", _NUMBER, _ARM + "interrupt controller"),
    ("llc_colors", _LIST, _ARM + "cache colouring"),
    ("trap_unmapped_accesses", _BOOLEAN, _ARM + "memory faults"),
    ("arm_sci", _STRING, _ARM + "system control interface"),
)


def _rows() -> dict[str, Key]:
    groups = ((Status.ACTED, _ACTED), (Status.IGNORED, _IGNORED), (Status.REFUSED, _REFUSED))
    rows = [Key(name, kind, types, status, note) for status, group in groups for name, kind, types, note in group]
    rows += [Key(name, kind, (), Status.FOREIGN, note) for name, kind, note in _FOREIGN]
    return {row.name: row for row in rows}


KEYS: Mapping[str, Key] = _rows()
