"""Network interfaces: what is in the slots of the rings.

Ref: xen/include/public/io/netif.h
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final

XEN_NETIF_NR_SLOTS_MIN: Final = 18
"""Slots of one packet that every backend accepts."""
XEN_NETIF_MAX_TX_SIZE: Final = 0xFFFF

NETTXF_csum_blank: Final = 1 << 0
NETTXF_data_validated: Final = 1 << 1
NETTXF_more_data: Final = 1 << 2
NETTXF_extra_info: Final = 1 << 3

NETRXF_data_validated: Final = 1 << 0
NETRXF_csum_blank: Final = 1 << 1
NETRXF_more_data: Final = 1 << 2
NETRXF_extra_info: Final = 1 << 3

XEN_NETIF_EXTRA_TYPE_GSO: Final = 1
XEN_NETIF_EXTRA_TYPE_MCAST_ADD: Final = 2
XEN_NETIF_EXTRA_TYPE_MCAST_DEL: Final = 3
XEN_NETIF_EXTRA_TYPE_HASH: Final = 4
XEN_NETIF_EXTRA_FLAG_MORE: Final = 1 << 0
XEN_NETIF_GSO_TYPE_TCPV4: Final = 1
XEN_NETIF_GSO_TYPE_TCPV6: Final = 2

NETIF_RSP_DROPPED: Final = -2
NETIF_RSP_ERROR: Final = -1
NETIF_RSP_OKAY: Final = 0
NETIF_RSP_NULL: Final = 1
"""Answers a slot that was no request of its own."""

NETIF_TX_SLOT_SIZE: Final = 12
NETIF_RX_SLOT_SIZE: Final = 8
NETIF_CTRL_SLOT_SIZE: Final = 16

NETIF_TX_REQUEST: Final = Struct("<IHHHH")
"""struct netif_tx_request: gref, offset, flags, id, size."""
NETIF_TX_RESPONSE: Final = Struct("<Hh8x")
"""struct netif_tx_response in its slot: id, status."""
NETIF_RX_REQUEST: Final = Struct("<HxxI")
"""struct netif_rx_request: id, gref."""
NETIF_RX_RESPONSE: Final = Struct("<HHHh")
"""struct netif_rx_response: id, offset, flags, status."""
NETIF_EXTRA: Final = Struct("<BB6s")
"""struct netif_extra_info: type, flags, what the type says."""
NETIF_EXTRA_GSO: Final = Struct("<HBxH")
"""The six bytes of a GSO extra: size, type, features."""
NETIF_EXTRA_HASH: Final = Struct("<BBI")
"""The six bytes of a hash extra: type, algorithm, value."""
NETIF_CTRL_REQUEST: Final = Struct("<HH3I")
"""struct xen_netif_ctrl_request: id, type, data."""
NETIF_CTRL_RESPONSE: Final = Struct("<HHII4x")
"""struct xen_netif_ctrl_response in its slot: id, type, status, data."""


class CtrlType(IntEnum):
    """Requests of the control ring."""

    GET_HASH_FLAGS = 1
    SET_HASH_FLAGS = 2
    SET_HASH_KEY = 3
    GET_HASH_MAPPING_SIZE = 4
    SET_HASH_MAPPING_SIZE = 5
    SET_HASH_MAPPING = 6
    SET_HASH_ALGORITHM = 7
    GET_GREF_MAPPING_SIZE = 8
    ADD_GREF_MAPPING = 9
    DEL_GREF_MAPPING = 10


class CtrlStatus(IntEnum):
    """Answers of the control ring."""

    SUCCESS = 0
    NOT_SUPPORTED = 1
    INVALID_PARAMETER = 2
    BUFFER_OVERFLOW = 3


XEN_NETIF_CTRL_HASH_ALGORITHM_NONE: Final = 0
XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ: Final = 1


class HashType(IntEnum):
    """What of a packet a hash covers: bit numbers in the flags of the control ring, and the type of a hash extra."""

    IPV4 = 0
    IPV4_TCP = 1
    IPV6 = 2
    IPV6_TCP = 3
