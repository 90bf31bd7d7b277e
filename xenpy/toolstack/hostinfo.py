"""What `xl info` says: of the host what it is, of the hypervisor what guests are told.

Ref: xl(1), info
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from xenpy.config.building import DEFAULT_XEN_VERSION
from xenpy.pv.version import CAPABILITIES, XenVersion

if TYPE_CHECKING:
    from collections.abc import Iterator


def fields() -> Iterator[tuple[str, str]]:
    """Yield names and values in xl's order."""
    uname = os.uname()
    cpuinfo = _cpuinfo()
    processors = os.sysconf("SC_NPROCESSORS_ONLN")
    page = os.sysconf("SC_PAGE_SIZE")
    cores = int(cpuinfo.get("cpu cores", "1")) or 1
    siblings = int(cpuinfo.get("siblings", "1"))
    version = XenVersion(*DEFAULT_XEN_VERSION)
    yield "host", uname.nodename
    yield "release", uname.release
    yield "version", uname.version
    yield "machine", uname.machine
    yield "nr_cpus", str(processors)
    yield "max_cpu_id", str(os.sysconf("SC_NPROCESSORS_CONF") - 1)
    yield "nr_nodes", str(max(1, len(list(Path("/sys/devices/system/node").glob("node[0-9]*")))))
    yield "cores_per_socket", str(cores)
    yield "threads_per_core", str(max(1, siblings // cores))
    yield "cpu_mhz", cpuinfo.get("cpu MHz", "0")
    yield "virt_caps", "pv hvm hap gnttab-v1 gnttab-v2"
    yield "total_memory", str(os.sysconf("SC_PHYS_PAGES") * page >> 20)
    yield "free_memory", str(_available_kib() >> 10)
    yield "sharing_freed_memory", "0"
    yield "sharing_used_memory", "0"
    yield "outstanding_claims", "0"
    yield "free_cpus", "0"
    yield "xen_major", str(version.major)
    yield "xen_minor", str(version.minor)
    yield "xen_extra", version.extraversion
    yield "xen_version", f"{version.major}.{version.minor}{version.extraversion}"
    yield "xen_caps", CAPABILITIES
    yield "xen_scheduler", "linux"
    yield "xen_pagesize", str(page)
    yield "platform_params", "virt_start=0xffff800000000000"
    yield "xen_changeset", version.changeset
    yield "xen_commandline", version.commandline
    yield "cc_compiler", version.compiler
    yield "cc_compile_by", version.compile_by
    yield "cc_compile_domain", version.compile_domain
    yield "cc_compile_date", version.compile_date
    yield "build_id", ""
    yield "xend_config_format", "4"


def _cpuinfo() -> dict[str, str]:
    """Return the first processor's lines of /proc/cpuinfo."""
    try:
        block = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in block.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _available_kib() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1])
    return 0
