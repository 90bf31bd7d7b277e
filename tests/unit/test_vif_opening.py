"""What a vif= entry puts behind an interface, and what it may not ask for."""

from __future__ import annotations

import pytest
from vif_rig import MAC, VifServices

from xenpy.config.forward import Forward
from xenpy.config.vif import VifConfig
from xenpy.devices.vif.opening import open_link
from xenpy.devices.vif.usernet import network_of
from xenpy.errors import ConfigError, HostError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gatewaydev": "eth0"}, "gatewaydev=eth0 is not supported"),
        ({"vlan": "5"}, "vlan=5 is not supported"),
        ({"script": "vif-nat"}, "script=vif-nat is not run"),
        ({"ip": ("10.0.0",)}, "ip=10.0.0 is not an address"),
        ({"ip": ("10.0.0.1/31",)}, "leaves no address for a gateway"),
        ({"vifname": "a-name-of-17-bytes"}, "is not the name of an interface"),
    ],
)
def test_refusals(options: dict[str, object], message: str) -> None:
    services = VifServices()
    with pytest.raises(ConfigError, match=message):
        open_link(services, 1, VifConfig(0, MAC, **options))
    services.close()


@pytest.mark.parametrize("port", [0, 65536, -1])
def test_ports_are_ports(port: int) -> None:
    with pytest.raises(ConfigError, match="not from 1 to 65535"):
        Forward(port, 80)


def test_missing_passt_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    services = VifServices()
    with pytest.raises(HostError, match="apt install passt"):
        open_link(services, 1, VifConfig(0, MAC))
    services.close()


def test_networks_follow_from_the_number_of_the_interface_or_from_ip() -> None:
    first, second = network_of(VifConfig(0, MAC)), network_of(VifConfig(1, MAC))
    assert (str(first.guest), str(first.gateway), first.gateway_mac) == (
        "10.0.2.15/24",
        "10.0.2.2",
        "52:55:0a:00:02:02",
    )
    assert (str(second.guest), str(second.gateway)) == ("10.0.3.15/24", "10.0.3.2")
    given = network_of(VifConfig(0, MAC, ip=("192.168.7.9", "fd00::9")))
    assert (str(given.guest), str(given.gateway), str(given.guest6)) == ("192.168.7.9/24", "192.168.7.2", "fd00::9")
    assert str(network_of(VifConfig(0, MAC, ip=("192.168.7.2/29",))).gateway) == "192.168.7.1"
    assert [
        option for option in given.arguments(9000, [Forward(8080, 80, "udp")]) if "mtu" in option or "ports" in option
    ] == [
        "--udp-ports=127.0.0.1/8080:80",
        "--mtu=9000",
    ]
