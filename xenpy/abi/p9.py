"""9P2000.L: the file protocol of Linux's v9fs. Little-endian; a reply's number is its request's plus one.

Ref: diod, protocol.md (9P2000.L); Plan 9 manual, section 5; linux/include/net/9p/9p.h
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct
from typing import Final

VERSION: Final = b"9P2000.L"
UNKNOWN_VERSION: Final = b"unknown"

HEADER: Final = Struct("<IBH")
"""size, with the header's own; type; tag"""
QID: Final = Struct("<BIQ")
"""type, version, path"""
RLERROR: Final = 7
READ_OVERHEAD: Final = HEADER.size + 4
"""Bytes of an answer to read or readdir beside the data."""
MAX_WALK: Final = 16
"""Names in one walk."""
NO_UID: Final = (1 << 32) - 1
V9FS_MAGIC: Final = 0x01021997


class T(IntEnum):
    """Requests."""

    STATFS = 8
    LOPEN = 12
    LCREATE = 14
    SYMLINK = 16
    MKNOD = 18
    RENAME = 20
    READLINK = 22
    GETATTR = 24
    SETATTR = 26
    READDIR = 40
    FSYNC = 50
    LOCK = 52
    GETLOCK = 54
    LINK = 70
    MKDIR = 72
    RENAMEAT = 74
    UNLINKAT = 76
    VERSION = 100
    ATTACH = 104
    FLUSH = 108
    WALK = 110
    READ = 116
    WRITE = 118
    CLUNK = 120
    REMOVE = 122


class QT(IntEnum):
    """Types of a qid."""

    FILE = 0x00
    SYMLINK = 0x02
    DIR = 0x80


class OPEN(IntFlag):
    """Flags of lopen and lcreate that mean something to a server; they are Linux's on x86."""

    ACCMODE = 0o3
    EXCL = 0o200
    TRUNC = 0o1000
    DSYNC = 0o10000
    SYNC = 0o4000000


class SETATTR(IntFlag):
    """What a setattr sets; a time without its _SET bit is the present."""

    MODE = 0x1
    UID = 0x2
    GID = 0x4
    SIZE = 0x8
    ATIME = 0x10
    MTIME = 0x20
    ATIME_SET = 0x80
    MTIME_SET = 0x100


GETATTR_BASIC: Final = 0x7FF
"""All that stat(2) says."""
GETATTR_REPLY: Final = Struct("<Q13sIII15Q")
"""valid, qid, mode, uid, gid, nlink, rdev, size, blksize, blocks, four times of seconds and nanoseconds, gen, data_version"""
SETATTR_REQUEST: Final = Struct("<IIIIQqQqQ")
"""valid, mode, uid, gid, size, atime in seconds and nanoseconds, mtime likewise"""
STATFS_REPLY: Final = Struct("<IIQQQQQQI")
"""type, bsize, blocks, bfree, bavail, files, ffree, fsid, namelen"""
AT_REMOVEDIR: Final = 0x200
"""Flag of unlinkat."""
LOCK_SUCCESS: Final = 0
LOCK_TYPE_UNLCK: Final = 2
