"""Which guest a test gets: what its markers say, and what the command line says instead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from xenpy.api.guest import Guest
from xenpy.errors import ConfigError

if TYPE_CHECKING:
    import pytest

    from xenpy.api.host import Host

_FILES: Final = ("cfg", "kernel", "ramdisk")


def make_guest(request: pytest.FixtureRequest, host: Host) -> Guest:
    """Make the guest for a test. Raises ConfigError, HostError."""
    settings = marked(request.node)
    option = request.config.getoption
    invoked_in = request.config.invocation_params.dir
    if option("xen_cfg") is not None:
        settings = {key: value for key, value in settings.items() if key not in _FILES}
        settings["cfg"] = invoked_in / option("xen_cfg")
    if option("xen_kernel") is not None:
        settings["kernel"] = invoked_in / option("xen_kernel")
    cfg = settings.pop("cfg", None)
    if cfg is not None:
        return Guest.from_cfg(cfg, host=host, **settings)
    if "kernel" in settings:
        return Guest.from_kernel(host=host, **settings)
    raise ConfigError(
        "no guest is chosen: mark the test @pytest.mark.xen_guest('guest.cfg') or xen_guest(kernel='vmlinuz'),"
        " or run pytest with --xen-cfg or --xen-kernel"
    )


def marked(node: pytest.Item) -> dict[str, Any]:
    """Return what the markers of a test say together; those of the test come before its class's and module's."""
    settings: dict[str, Any] = {}
    for marker in reversed(list(node.iter_markers("xen_guest"))):
        if len(marker.args) > 1:
            raise ConfigError("the marker xen_guest takes one argument without a name, the xl.cfg file")
        said = {**dict(zip(("cfg",), marker.args, strict=False)), **marker.kwargs}
        settings.update({key: node.path.parent / value if key in _FILES else value for key, value in said.items()})
    return settings
