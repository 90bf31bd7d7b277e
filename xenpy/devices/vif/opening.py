"""What an interface's configuration puts behind it.

Without bridge= it is user networking. bridge=NAME is the host's interface of that name, to which a tap is added, or, if
the host has none, a switch of that name between the guests of this process.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from xenpy import log
from xenpy.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.config.vif import VifConfig
    from xenpy.devices.vif.isolated import Outlet
    from xenpy.devices.vif.link import Link
    from xenpy.devices.vif.passt import Passt
    from xenpy.devices.vif.services import VifServices
    from xenpy.devices.vif.station import Listener, Station
    from xenpy.devices.vif.tap import TapLink

_BRIDGE_SCRIPTS = ("vif-bridge", "/etc/xen/scripts/vif-bridge")


def open_station(
    services: VifServices, domid: int, config: VifConfig, *, isolated: bool = False
) -> Callable[[Listener], Station]:
    """Open what is behind an interface, and return what makes the station in front of it.

    With `isolated` a process of its own moves the frames, but not those of a switch: that copies straight from one guest's pages into
    another's, which a process that sees one guest alone cannot. Raises ConfigError, HostError.
    """
    if isolated and not _is_switched(config):
        from xenpy.devices.vif.isolated import Isolated

        outlet = _open_outlet(services, domid, config)
        return lambda listener: Isolated(services, domid, config, outlet, listener)
    from xenpy.devices.vif.station import InLoop

    link = open_link(services, domid, config)
    return lambda listener: InLoop(services, domid, config, link, listener)


def open_link(services: VifServices, domid: int, config: VifConfig) -> Link:
    """Open what is behind an interface, for frames that the host's loop moves. Raises ConfigError, HostError."""
    _refuse_unsupported(config)
    if _is_user_network(config):
        from xenpy.devices.vif.passt_link import PasstLink

        return PasstLink(services.loop, _open_passt(services, config))
    if not _is_switched(config):
        return _open_tap(services, domid, config)
    assert config.bridge is not None
    with services.lock:
        if config.bridge not in services.switches:
            log.debug(f"vif {config.devid}: this host has no bridge {config.bridge}; it is a switch between its guests")
        return services.switches.join(config.bridge)


def _open_outlet(services: VifServices, domid: int, config: VifConfig) -> Outlet:
    from xenpy.devices.vif.isolated import PasstOutlet, TapOutlet

    _refuse_unsupported(config)
    if _is_user_network(config):
        return PasstOutlet(_open_passt(services, config))
    return TapOutlet(_open_tap(services, domid, config))


def _open_passt(services: VifServices, config: VifConfig) -> Passt:
    from xenpy.devices.vif.passt import Passt
    from xenpy.devices.vif.usernet import network_of

    network = network_of(config)
    mac = bytes.fromhex(config.mac.replace(":", ""))
    return Passt(services.loop, network.arguments(config.mtu, config.forwards), mac, network.gateway.packed)


def _open_tap(services: VifServices, domid: int, config: VifConfig) -> TapLink:
    from xenpy.devices.vif.tap import TapLink

    return TapLink(services.loop, config.vifname or f"vif{domid}.{config.devid}", config.bridge, config.mtu)


def _is_user_network(config: VifConfig) -> bool:
    return config.bridge is None and config.vifname is None


def _is_switched(config: VifConfig) -> bool:
    return config.bridge is not None and not _exists(config.bridge)


def _refuse_unsupported(config: VifConfig) -> None:
    """Raise ConfigError for what would need a hotplug script of Xen's."""
    for name, value in (("gatewaydev", config.gatewaydev), ("vlan", config.vlan)):
        if value is not None:
            raise ConfigError(
                f"{config.position}: vif: {name}={value} is not supported; use bridge=, or neither of them"
            )
    if config.script is not None and config.script not in _BRIDGE_SCRIPTS:
        raise ConfigError(
            f"{config.position}: vif: script={config.script} is not run; only vif-bridge's work is done here"
        )


def _exists(name: str) -> bool:
    """Tell whether this process's network namespace has an interface of that name."""
    try:
        socket.if_nametoindex(name)
    except OSError:
        return False
    return True
