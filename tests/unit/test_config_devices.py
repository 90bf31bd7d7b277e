"""vif=, p9=, channel=, vfb= and vkb= strings, cpus= and cpuid=."""

from __future__ import annotations

import pytest

from xenpy.config import (
    ChannelConfig,
    ChannelConnection,
    CpuidFeature,
    CpuidRegister,
    DomainConfig,
    P9Config,
    VfbConfig,
    VifRate,
    VkbConfig,
    build,
    parse_text,
)
from xenpy.config.forward import Forward
from xenpy.config.vif import default_mac
from xenpy.errors import ConfigError

PVH = "name='g'; type='pvh'; kernel='k'; memory=64; "


def domain(text: str, prefix: str = PVH) -> DomainConfig:
    return build(parse_text(prefix + text, "f"), "f")


def refusal(text: str, prefix: str = PVH) -> str:
    with pytest.raises(ConfigError) as caught:
        domain(text, prefix)
    return str(caught.value)


def test_a_vif_may_be_empty() -> None:
    (vif,) = domain("vif=['']").vifs
    assert (vif.devid, vif.bridge, vif.rate, vif.mtu, vif.trusted) == (0, None, None, None, True)


def test_default_macs_are_xens_stable_and_distinct() -> None:
    first, again = domain("vif=['','']").vifs, domain("vif=['','']").vifs
    assert first == again
    assert first[0].mac != first[1].mac
    assert first[0].mac == default_mac("g", 0)
    assert all(vif.mac.startswith("00:16:3e:") and int(vif.mac[9:11], 16) < 0x80 for vif in first)
    other = domain("uuid='1c7ada8e-3426-4fd7-93ec-9e03f26a85ef'; vif=['','']").vifs
    assert other[0].mac != first[0].mac


def test_vif_parameters() -> None:
    text = "mac=0:16:3E:1:2:a, bridge = br0,vifname=v,script=s,ip=10.0.0.1 fe80::1,mtu=9000,untrusted,type=vif,gatewaydev=e"
    (vif,) = domain(f"vif=['{text}']").vifs
    assert vif.mac == "00:16:3e:01:02:0a"
    assert (vif.bridge, vif.vifname, vif.script, vif.gatewaydev) == ("br0", "v", "s", "e")
    assert (vif.ip, vif.mtu, vif.trusted) == (("10.0.0.1", "fe80::1"), 9000, False)


def test_ports_of_the_host_that_lead_to_a_guest() -> None:
    text = "hostfwd=tcp:127.0.0.1:2222-:22, hostfwd=udp:0.0.0.0:53-:5353,hostfwd=::80-:8080,hostfwd=tcp:[::1]:80-:8080"
    assert domain(f"vif=['{text}']").vifs[0].forwards == (
        Forward(2222, 22),
        Forward(53, 5353, "udp", "0.0.0.0"),
        Forward(80, 8080),
        Forward(80, 8080, "tcp", "::1"),
    )


def test_vif_devids_are_the_lowest_free_ones() -> None:
    assert [vif.devid for vif in domain("vif=['','devid=0','devid=7','']").vifs] == [1, 0, 7, 2]


@pytest.mark.parametrize(
    ("rate", "credit"),
    [
        ("10Mb/s", (62_500, 50_000)),
        ("250KB/s", (12_500, 50_000)),
        ("1MB/s@20ms", (20_000, 20_000)),
        ("1GB/s@1s", (10**9, 10**6)),
        ("8000b/s@1s", (1000, 10**6)),
        ("1KB/s@5", (5000, 5 * 10**6)),
        ("1MB/s@100us", (100, 100)),
    ],
)
def test_vif_rates(rate: str, credit: tuple[int, int]) -> None:
    assert domain(f"vif=['rate={rate}']").vifs[0].rate == VifRate(*credit)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("brigde=x", "unknown parameter \"brigde\"; did you mean 'bridge'?"),
        ("bridge", "bridge needs a value: bridge=..."),
        ("untrusted=1", "untrusted takes no value"),
        ("trusted,untrusted", "it is both trusted and untrusted"),
        ("mtu=9000,mtu=1500", "mtu is given twice"),
        ("mtu=10", "mtu=10 is not a number from 68 to"),
        ("devid=x", "devid=x is not a number from 0 to 65535"),
        ("mac=00:16:3e:01:02", "mac=00:16:3e:01:02 is not six pairs of hexadecimal digits"),
        ("mac=00:16:3e:01:02:03:04", "mac=00:16:3e:01:02:03:04 is not six pairs"),
        ("mac=zz:16:3e:01:02:03", "mac=zz:16:3e:01:02:03 is not six pairs"),
        ("mac=01:16:3e:01:02:03", "mac=01:16:3e:01:02:03 is a multicast or zero address"),
        ("hostfwd=2222-22", "hostfwd=2222-22 is not like tcp:127.0.0.1:2222-:22"),
        ("hostfwd=icmp::1-:1", "hostfwd=icmp::1-:1 is not like"),
        (
            "hostfwd=tcp::22-10.0.2.15:22",
            "hostfwd=tcp::22-10.0.2.15:22: ports lead to this interface's guest; leave its",
        ),
        ("hostfwd=tcp::0-:22", "hostfwd=tcp::0-:22: port 0 is not from 1 to 65535"),
        ("hostfwd=tcp::22-:65536", "hostfwd=tcp::22-:65536: port 65536 is not from 1 to 65535"),
        ("hostfwd=tcp:localhost:22-:22", "hostfwd=tcp:localhost:22-:22: localhost is not an address of the host's"),
        (
            "hostfwd=tcp::22-:1,hostfwd=tcp:127.0.0.1:22-:2",
            "hostfwd=tcp:127.0.0.1:22-:2: 127.0.0.1 port 22 leads elsewhere already",
        ),
        ("hostfwd=tcp::22-:22,bridge=br0", "hostfwd= is for user networking, which bridge= is not"),
        ("hostfwd=tcp::22-:22,vifname=t", "hostfwd= is for user networking, which vifname= is not"),
        ("type=ioemu", "type=ioemu is refused: only HVM guests have emulated interfaces"),
        ("type=x", "type=x is not vif"),
        ("backend=net", "backend=net is refused: backends are part of xenpy"),
        ("rate=10", "rate=10 is not like 10Mb/s, 250KB/s or 1MB/s@20ms"),
        ("rate=10mb/s", "rate=10mb/s is not like"),
        ("rate=1MB/s@", "rate=1MB/s@ is not like"),
        ("rate=0B/s", "rate=0B/s comes to less than a byte"),
        ("rate=1MB/s@5000", 'rate="1MB/s@5000" is too large'),
        ("rate=1" + "0" * 30 + "B/s", "rate=1" + "0" * 30 + "B/s is not like"),
    ],
)
def test_vif_refusals(text: str, message: str) -> None:
    error = refusal(f"\nvif=['{text}']")
    assert error.startswith('f:2: vif "')
    assert f'": {message}' in error


def test_vifs_share_neither_devid_nor_mac() -> None:
    assert "its devid is also that of the vif at f:1" in refusal("vif=['devid=1','devid=1']")
    mac = "mac=00:16:3e:01:02:03"
    assert "its mac is also that of the vif at f:1" in refusal(f"vif=['{mac}','{mac}']")


def test_deprecated_vif_parameters_warn() -> None:
    config = domain("vif=['netdev=eth0,accel=1']")
    assert config.vifs[0].gatewaydev == "eth0"
    assert config.warnings == (
        "f:1: vif: netdev= is deprecated: it is called gatewaydev now",
        "f:1: vif: accel= is deprecated: it has no effect",
    )


def test_p9() -> None:
    text = "p9=['tag=t, path=/p, security_model=none, max-files=9, auto-delete=1']"
    assert domain(text).p9 == (P9Config("t", "/p", max_files=9, auto_delete=True),)
    assert refusal("p9=['tag=t']") == 'f:1: p9 "tag=t": path= is missing'
    assert "security_model=mapped is refused" in refusal("p9=['tag=t,path=/p,security_model=mapped']")
    assert "tag t is also that of /p" in refusal("p9=['tag=t,path=/p','tag=t,path=/q']")


def test_channels() -> None:
    config = domain("channel=[' connection = pty , name = a ', 'connection=SOCKET,name=b,path=/s']")
    assert config.channels == (
        ChannelConfig(0, "a", ChannelConnection.PTY),
        ChannelConfig(1, "b", ChannelConnection.SOCKET, "/s"),
    )
    assert "name= is missing" in refusal("channel=['connection=pty']")
    assert "path= is missing" in refusal("channel=['connection=socket,name=a']")
    assert "connection=tty is none of pty, socket" in refusal("channel=['connection=tty,name=a']")


def test_each_framebuffer_brings_a_keyboard() -> None:
    config = domain("vfb=['vncdisplay=5,vncunused=0,vncpasswd=s,keymap=de']; vkb=['width=3,feature-abs-pointer=1']")
    assert config.vfbs == (VfbConfig(0, vncdisplay=5, vncunused=False, vncpasswd="s", keymap="de"),)
    assert config.vkbs == (VkbConfig(0, width=3, feature_abs_pointer=True), VkbConfig(1))
    assert "sdl=1 is refused: framebuffers are served over VNC" in refusal("vfb=['sdl=1']")
    assert "vnc=x is neither 0 nor 1" in refusal("vfb=['vnc=x']")
    assert "backend-type=x is neither qemu nor linux" in refusal("vkb=['backend-type=x']")


def test_top_level_vnc_gives_a_pv_guest_a_framebuffer() -> None:
    pv = PVH.replace("pvh", "pv")
    config = domain("vnc=1; vnclisten='::1'; vncdisplay=3", pv)
    assert config.vfbs == (VfbConfig(0, vnclisten="::1", vncdisplay=3),)
    assert len(config.vkbs) == 1
    assert domain("vnc=0; vncdisplay=3", pv).vfbs == ()
    assert domain("vnc=1; vfb=['vncdisplay=9']", pv).vfbs == (VfbConfig(0, vncdisplay=9),)
    assert "key 'vnc' is for PV guests only" in refusal("vnc=1")


ONLINE = frozenset(range(8))
NODES = {0: frozenset(range(4)), 1: frozenset(range(4, 8))}


@pytest.mark.parametrize(
    ("cpus", "chosen"),
    [
        ("0-3,5,^1", {0, 2, 3, 5}),
        ("all,^7", {0, 1, 2, 3, 4, 5, 6}),
        ("^1", {0, 2, 3, 4, 5, 6, 7}),
        ("1,node:1,^6", {1, 4, 5, 7}),
        ("all,^node:1", {0, 1, 2, 3}),
        ("nodes:0-1", set(range(8))),
        ("node:9", set()),
        ("6-20", {6, 7}),
    ],
)
def test_cpus_is_a_set_of_host_cpus(cpus: str, chosen: set[int]) -> None:
    first, second = domain(f"vcpus=2; cpus='{cpus}'").cpus
    assert first is not None
    assert first.resolve(ONLINE, NODES) == chosen
    assert second == first


def test_cpus_of_each_vcpu() -> None:
    lists = domain("vcpus=3; cpus=['2', 'all']").cpus
    assert lists[0] is not None
    assert lists[0].resolve(ONLINE, NODES) == {2}
    assert lists[1:] == (None, None)
    assert "key 'cpus': 2 entries for 1 vCPUs" in refusal("cpus=[1,2]")


@pytest.mark.parametrize("cpus", ["x", "1-", "3-1", "1,,2", "node:", "5000", "^all", "-1"])
def test_cpus_refusals(cpus: str) -> None:
    assert refusal(f"cpus='{cpus}'").startswith("f:1: key 'cpus': \"")


def test_cpuid() -> None:
    first, second = domain("cpuid='host, tm=0, family=0x6'").cpuid
    assert isinstance(first, CpuidFeature)
    assert isinstance(second, CpuidFeature)
    assert (first.name, first.value, second.name, second.value) == ("tm", "0", "family", "0x6")
    bits = "x" * 31 + "0"
    rules = domain(f"cpuid=['1:ecx={bits},edx={bits}', '7,0:ebx={bits}']").cpuid
    assert [rule[:4] for rule in rules if isinstance(rule, CpuidRegister)] == [
        (1, None, "ecx", bits),
        (1, None, "edx", bits),
        (7, 0, "ebx", bits),
    ]


@pytest.mark.parametrize(
    "cpuid",
    [
        "'tm=0'",
        "'host,tm'",
        "'host,tm=2'",
        "'host,family=x1'",
        "['1:ecx=x']",
        "['ecx=x']",
        "['1:efx=x']",
        "['1,:eax=x']",
        "[[1]]",
    ],
)
def test_cpuid_refusals(cpuid: str) -> None:
    assert refusal(f"cpuid={cpuid}").startswith("f:1: key 'cpuid': ")
