"""The three kinds of failure, told apart by who must hear of them.

`XenError` is answered to the guest as an errno, `FrontendError` costs a misbehaving guest its device, and `XenpyError` is for the
person at the terminal.
"""

from __future__ import annotations

from enum import IntEnum


class Errno(IntEnum):
    """Xen's own error numbers, which guests see negated in the return register.

    They coincide with Linux's for the values used here but are defined by Xen, whatever the host.

    Ref: xen/include/public/errno.h
    """

    EPERM = 1
    ENOENT = 2
    ESRCH = 3
    EINTR = 4
    EIO = 5
    ENXIO = 6
    E2BIG = 7
    ENOEXEC = 8
    EBADF = 9
    ECHILD = 10
    EAGAIN = 11
    ENOMEM = 12
    EACCES = 13
    EFAULT = 14
    EBUSY = 16
    EEXIST = 17
    EXDEV = 18
    ENODEV = 19
    ENOTDIR = 20
    EISDIR = 21
    EINVAL = 22
    ENFILE = 23
    EMFILE = 24
    ENOSPC = 28
    EROFS = 30
    EMLINK = 31
    EDOM = 33
    ERANGE = 34
    EDEADLK = 35
    ENOSYS = 38
    ENOTEMPTY = 39
    ENODATA = 61
    ETIME = 62
    EBADMSG = 74
    EOVERFLOW = 75
    EILSEQ = 84
    ERESTART = 85
    ENOTSOCK = 88
    EMSGSIZE = 90
    EOPNOTSUPP = 95
    EADDRINUSE = 98
    EADDRNOTAVAIL = 99
    ENOBUFS = 105
    EISCONN = 106
    ENOTCONN = 107
    ETIMEDOUT = 110
    ECONNREFUSED = 111


class XenError(Exception):
    """A refusal that the guest sees: the hypercall returns `-errno`.

    `reason` is for the trace and the log; the guest never sees it.
    """

    def __init__(self, errno: Errno, reason: str = "") -> None:
        super().__init__(errno, reason)
        self.errno = errno
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.errno.name}: {self.reason}" if self.reason else self.errno.name


class FrontendError(Exception):
    """A guest's driver broke a device protocol; the device goes to Closing, nothing else suffers."""


class XenpyError(Exception):
    """A failure the user must hear of, phrased for the user; the command ends with `exit_code`.

    `exit_code` values are those of `xenpy.exitcodes.ExitCode`.
    """

    exit_code = 1


class ConfigError(XenpyError):
    """A configuration file, override or kernel image is wrong; the message names file, line, key and what would be right."""

    exit_code = 2


class HostError(XenpyError):
    """This host cannot run the guest; the message says what is missing and the remedy."""

    exit_code = 3
