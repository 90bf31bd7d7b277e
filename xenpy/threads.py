"""What the host's scheduler says of a thread."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import threading

_MAX_STAT: Final = 1024
_STATE: Final = 0
_PROCESSOR: Final = 36
"""Places behind the command's name. Ref: proc(5), /proc/PID/stat, fields 3 and 39"""
_IOCTL: Final = 16
"""The number of the system call. Ref: <asm/unistd_64.h>"""


def thread_place(thread: threading.Thread | None) -> tuple[bool, int]:
    """Tell whether a thread runs or waits to, and the processor it was on last; (False, 0) if there is no such thread."""
    try:
        fields = _about(thread, "stat").rpartition(b")")[2].split()
        return fields[_STATE] == b"R", int(fields[_PROCESSOR])
    except (OSError, IndexError, ValueError):
        return False, 0


def sleeps_in_ioctl(thread: threading.Thread | None, fd: int, request: int) -> bool:
    """Tell whether a thread sleeps in a request to a file's driver, and nowhere else; a thread that has ended does not.

    Ref: proc(5), /proc/PID/syscall: the call's number and its arguments in hexadecimal, or "running"
    """
    try:
        fields = _about(thread, "syscall").split(maxsplit=3)
        return (int(fields[0]), int(fields[1], 16), int(fields[2], 16)) == (_IOCTL, fd, request)
    except (OSError, IndexError, ValueError):
        return False


def _about(thread: threading.Thread | None, file: str) -> bytes:
    """Return one of the files that the kernel has about a thread. Raises OSError if there is no such thread."""
    if thread is None or thread.native_id is None:
        raise ProcessLookupError
    fd = os.open(f"/proc/self/task/{thread.native_id}/{file}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, _MAX_STAT)
    finally:
        os.close(fd)
