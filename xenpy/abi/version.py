"""xen_version commands. Ref: xen/include/public/version.h"""

from __future__ import annotations

from typing import Final

from xenpy.abi.op import Op

XENVER_version: Final = Op(0, "version")
XENVER_extraversion: Final = Op(1, "extraversion")
XENVER_compile_info: Final = Op(2, "compile_info")
XENVER_capabilities: Final = Op(3, "capabilities")
XENVER_changeset: Final = Op(4, "changeset")
XENVER_platform_parameters: Final = Op(5, "platform_parameters")
XENVER_get_features: Final = Op(6, "get_features", "xen_feature_info", out=True)
XENVER_pagesize: Final = Op(7, "pagesize")
XENVER_guest_handle: Final = Op(8, "guest_handle")
XENVER_commandline: Final = Op(9, "commandline")
XENVER_build_id: Final = Op(10, "build_id")

XEN_EXTRAVERSION_LEN: Final = 16
XEN_CAPABILITIES_INFO_LEN: Final = 1024
XEN_CHANGESET_INFO_LEN: Final = 64
XEN_COMMANDLINE_LEN: Final = 1024
