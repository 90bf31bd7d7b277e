"""multicall: several hypercalls in one.

Ref: xen/include/public/xen.h, struct multicall_entry
"""

from __future__ import annotations

from typing import Final

from xenpy.errors import Errno
from xenpy.hypercalls.call import Call
from xenpy.hypercalls.dispatch import hypercall

_NUMBER: Final = 13
_IRET: Final = 23
_ENTRY_WORDS: Final = 8
_ARGS: Final = 6


@hypercall(_NUMBER, "multicall")
def multicall(call: Call) -> None:
    """Carry out the entries in order, each one's result going into the entry; that of a multicall is -EINVAL."""
    gva, count = call.args[0], call.args[1] & 0xFFFFFFFF
    size = call.word_size
    for index in range(count):
        if index % 32 == 31:
            call.checkpoint()
        words = call.words(gva, _ENTRY_WORDS)
        args = words[2 : 2 + _ARGS]
        inner = Call(call.domain, call.vcpu, words[0], args, wide=call.wide, checkpoint=call.checkpoint, within=True)
        if inner.nr == _IRET and call.domain.is_pv:
            call.domain.dispatch(inner)
            return  # to what the guest was about to go on with; what is left of the list is not its kernel's any more
        call.store_words(gva + size, [call.domain.dispatch(inner) if inner.nr != _NUMBER else -Errno.EINVAL])
        gva += _ENTRY_WORDS * size
