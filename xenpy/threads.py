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


def thread_place(thread: threading.Thread | None) -> tuple[bool, int]:
    """Tell whether a thread runs or waits to, and the processor it was on last; (False, 0) if there is no such thread."""
    if thread is None or thread.native_id is None:
        return False, 0
    try:
        fd = os.open(f"/proc/self/task/{thread.native_id}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False, 0
    try:
        fields = os.read(fd, _MAX_STAT).rpartition(b")")[2].split()
        return fields[_STATE] == b"R", int(fields[_PROCESSOR])
    except (OSError, IndexError, ValueError):
        return False, 0
    finally:
        os.close(fd)
