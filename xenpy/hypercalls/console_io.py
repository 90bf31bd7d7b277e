"""console_io: the emergency console, of which a domU can only write.

Ref: xen/include/public/xen.h, CONSOLEIO_*
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.abi.op import Op
from xenpy.errors import Errno, XenError
from xenpy.hypercalls.dispatch import Hypercall

if TYPE_CHECKING:
    from xenpy.hypercalls.call import Call

CONSOLEIO_write: Final = Op(0, "write")
CONSOLEIO_read: Final = Op(1, "read")
_CHUNK: Final = 1024

console_io = Hypercall(18, "console_io")


@console_io.handles(CONSOLEIO_write)
def write(call: Call) -> None:
    """Write (count, buffer) to the emergency console."""
    count, gva = call.args[1] & 0xFFFFFFFF, call.args[2]
    if count > 0x7FFFFFFF:
        raise XenError(Errno.EINVAL, "a negative count")
    while count:
        step = min(count, _CHUNK)
        call.domain.console_write(call.read(gva, step))
        gva += step
        count -= step
        call.checkpoint()


@console_io.handles(CONSOLEIO_read)
def read(_call: Call) -> None:
    """Refuse: reading is dom0's."""
    raise XenError(Errno.EPERM, "reading the emergency console is for dom0")
