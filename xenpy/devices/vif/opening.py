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
    from xenpy.config.vif import VifConfig
    from xenpy.devices.vif.backend import VifServices
    from xenpy.devices.vif.link import Link

_BRIDGE_SCRIPTS = ("vif-bridge", "/etc/xen/scripts/vif-bridge")


def open_link(services: VifServices, domid: int, config: VifConfig) -> Link:
    """Open what is behind an interface. Raises ConfigError, HostError."""
    _refuse_unsupported(config)
    if config.bridge is None and config.vifname is None:
        return _open_user_network(services, config)
    if config.bridge is None or _exists(config.bridge):
        from xenpy.devices.vif.tap import TapLink

        return TapLink(services.loop, config.vifname or f"vif{domid}.{config.devid}", config.bridge, config.mtu)
    with services.lock:
        if config.bridge not in services.switches:
            log.debug(f"vif {config.devid}: this host has no bridge {config.bridge}; it is a switch between its guests")
        return services.switches.join(config.bridge)


def _open_user_network(services: VifServices, config: VifConfig) -> Link:
    from xenpy.devices.vif.passt import PasstLink
    from xenpy.devices.vif.usernet import network_of

    network = network_of(config)
    mac = bytes.fromhex(config.mac.replace(":", ""))
    return PasstLink(services.loop, network.arguments(config.mtu, config.forwards), mac, network.gateway.packed)


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
