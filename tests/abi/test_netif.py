"""Numbers and layouts of network interfaces against the public header, by the C compiler."""

from __future__ import annotations

from conformance import Claim, refuted, require

from xenpy.abi import netif

HEADERS = ("xen/xen.h", "xen/io/netif.h")
PREFIXES = {
    "CtrlType": "XEN_NETIF_CTRL_TYPE_", "CtrlStatus": "XEN_NETIF_CTRL_STATUS_", "HashType": "_XEN_NETIF_CTRL_HASH_TYPE_",
}  # fmt: skip
FIELDS = {
    "netif_tx_request": ("gref", "offset", "flags", "id", "size"),
    "netif_tx_response": ("id", "status"),
    "netif_rx_request": ("id", "gref"),
    "netif_rx_response": ("id", "offset", "flags", "status"),
    "netif_extra_info": ("type", "flags", "u"),
    "xen_netif_ctrl_request": ("id", "type", "data[0]", "data[1]", "data[2]"),
    "xen_netif_ctrl_response": ("id", "type", "status", "data"),
}
FORMATS = {
    "netif_tx_request": netif.NETIF_TX_REQUEST, "netif_tx_response": netif.NETIF_TX_RESPONSE,
    "netif_rx_request": netif.NETIF_RX_REQUEST, "netif_rx_response": netif.NETIF_RX_RESPONSE,
    "netif_extra_info": netif.NETIF_EXTRA, "xen_netif_ctrl_request": netif.NETIF_CTRL_REQUEST,
    "xen_netif_ctrl_response": netif.NETIF_CTRL_RESPONSE,
}  # fmt: skip


def test_constants() -> None:
    require(HEADERS)
    claims = [
        Claim(name, f"({name}) == ({value})")
        for name, value in vars(netif).items()
        if type(value) is int and "SLOT_" not in name
    ]
    for name, prefix in PREFIXES.items():
        claims += [Claim(member.name, f"({prefix}{member.name}) == {member.value}") for member in getattr(netif, name)]
    assert len(claims) > 40
    assert refuted(HEADERS, claims) == {}


def test_slots_are_as_large_as_their_unions() -> None:
    require(HEADERS)
    unions = {
        "netif_tx": netif.NETIF_TX_SLOT_SIZE,
        "netif_rx": netif.NETIF_RX_SLOT_SIZE,
        "xen_netif_ctrl": netif.NETIF_CTRL_SLOT_SIZE,
    }
    claims = [Claim(name, f"sizeof(union {name}_sring_entry) == {size}") for name, size in unions.items()]
    assert refuted(HEADERS, claims) == {}


def test_layouts() -> None:
    """A value of ones in one field alone shows where our formats put that field."""
    require(HEADERS)
    claims = []
    for struct, fields in FIELDS.items():
        for index, field in enumerate(fields):
            values: list[object] = [0] * len(fields)
            values[index] = 1
            if (struct, field) == ("netif_extra_info", "u"):
                values[index] = b"\x01" + bytes(5)
            elif struct == "netif_extra_info":
                values[-1] = bytes(6)
            offset = FORMATS[struct].pack(*values).index(1)
            claims.append(Claim(f"{struct}.{field}", f"offsetof(struct {struct}, {field}) == {offset}"))
    for field, offset in (("size", 0), ("type", 2), ("features", 4)):
        values = [int(field == name) for name in ("size", "type", "features")]
        assert netif.NETIF_EXTRA_GSO.pack(*values).index(1) == offset
        claims.append(Claim(f"gso.{field}", f"offsetof(struct netif_extra_info, u.gso.{field}) == {2 + offset}"))
    for field, offset in (("type", 0), ("algorithm", 1), ("value", 2)):
        values = [int(field == name) for name in ("type", "algorithm", "value")]
        assert netif.NETIF_EXTRA_HASH.pack(*values).index(1) == offset
        claims.append(Claim(f"hash.{field}", f"offsetof(struct netif_extra_info, u.hash.{field}) == {2 + offset}"))
    assert refuted(HEADERS, claims) == {}
