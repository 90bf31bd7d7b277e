"""Xenstore's wire protocol: message types, error names, header and shared ring page.

Ref: xen/include/public/io/xs_wire.h, docs/misc/xenstore.txt, docs/misc/xenstore-ring.txt
"""

from __future__ import annotations

from enum import IntEnum, IntFlag


class MsgType(IntEnum):
    """The `type` of a message.

    Ref: xen/include/public/io/xs_wire.h `enum xsd_sockmsg_type`
    """

    XS_CONTROL = 0
    XS_DIRECTORY = 1
    XS_READ = 2
    XS_GET_PERMS = 3
    XS_WATCH = 4
    XS_UNWATCH = 5
    XS_TRANSACTION_START = 6
    XS_TRANSACTION_END = 7
    XS_INTRODUCE = 8
    XS_RELEASE = 9
    XS_GET_DOMAIN_PATH = 10
    XS_WRITE = 11
    XS_MKDIR = 12
    XS_RM = 13
    XS_SET_PERMS = 14
    XS_WATCH_EVENT = 15
    XS_ERROR = 16
    XS_IS_DOMAIN_INTRODUCED = 17
    XS_RESUME = 18
    XS_SET_TARGET = 19
    XS_RESET_WATCHES = 21
    XS_DIRECTORY_PART = 22
    XS_INVALID = 0xFFFF


XSD_ERRORS = (
    "EINVAL",
    "EACCES",
    "EEXIST",
    "EISDIR",
    "ENOENT",
    "ENOMEM",
    "ENOSPC",
    "EIO",
    "ENOTEMPTY",
    "ENOSYS",
    "EROFS",
    "EBUSY",
    "EAGAIN",
    "EISCONN",
    "E2BIG",
    "EPERM",
)
"""The error names that may cross the wire. Ref: xen/include/public/io/xs_wire.h `xsd_errors`"""

XSD_SOCKMSG_FORMAT = "<IIII"
"""struct xsd_sockmsg: type, req_id, tx_id, len. Ref: xen/include/public/io/xs_wire.h"""

XSD_SOCKMSG_SIZE = 16
XENSTORE_PAYLOAD_MAX = 4096
XENSTORE_ABS_PATH_MAX = 3072
XENSTORE_REL_PATH_MAX = 2048

XENSTORE_RING_SIZE = 1024


class RingOffset(IntEnum):
    """Byte offsets in the ring page.

    Ref: xen/include/public/io/xs_wire.h `struct xenstore_domain_interface`
    """

    req = 0
    rsp = 1024
    req_cons = 2048
    req_prod = 2052
    rsp_cons = 2056
    rsp_prod = 2060
    server_features = 2064
    connection = 2068
    error = 2072


class ServerFeature(IntFlag):
    """Bits of `server_features`.

    Ref: docs/misc/xenstore-ring.txt (bit 2 after 4.17)
    """

    RECONNECTION = 1
    ERROR = 2
    WATCH_DEPTH = 4


class RingConnection(IntEnum):
    """Values of `connection`. Ref: xen/include/public/io/xs_wire.h."""

    XENSTORE_CONNECTED = 0
    XENSTORE_RECONNECT = 1


class RingError(IntEnum):
    """Values of `error`. Ref: xen/include/public/io/xs_wire.h."""

    XENSTORE_ERROR_NONE = 0
    XENSTORE_ERROR_COMM = 1
    XENSTORE_ERROR_RINGIDX = 2
    XENSTORE_ERROR_PROTO = 3
