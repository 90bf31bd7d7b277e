"""Getting a vCPU thread out of KVM_RUN without a race, from another thread or by a timer.

A real-time signal carries the address of the vCPU's `kvm_run.immediate_exit` as its value, and a five-instruction handler stores 1
there. So a signal that arrives just before KVM_RUN still makes it return at once, no signal mask is needed, and a POSIX timer can kick a
vCPU with no thread of ours in between.
"""

from __future__ import annotations

import errno
import os
import signal
from typing import Any, Final

from xenpy import atomics, libc
from xenpy.abi._libc import ffi

KICK_SIGNAL: Final = signal.SIGRTMIN + 6

_CLOCK_MONOTONIC: Final = 1
_SIGEV_THREAD_ID: Final = 4
_NS: Final = 1_000_000_000
_installed = False


def _install() -> None:
    """Install the handler once for the process."""
    global _installed
    if not _installed:
        libc.install_siginfo_handler(KICK_SIGNAL, atomics.KICK_HANDLER)
        _installed = True


class KickTimer:
    """A one-shot timer that kicks the thread which created it.

    `flag` is the address of the byte to set. Ref: timer_create(2), SIGEV_THREAD_ID
    """

    def __init__(self, thread_id: int, flag: int) -> None:
        _install()
        event = ffi.new("struct xenpy_sigevent *")
        event.sigev_value = flag
        event.sigev_signo = KICK_SIGNAL
        event.sigev_notify = _SIGEV_THREAD_ID
        event.sigev_notify_thread_id = thread_id
        self._id: Any = ffi.new("uint64_t *")
        if libc.lib.timer_create(_CLOCK_MONOTONIC, event, self._id):
            raise OSError(ffi.errno, f"timer_create: {os.strerror(ffi.errno)}")
        self._spec: Any = ffi.new("struct xenpy_itimerspec *")
        self._armed = True

    def arm(self, delay_ns: int) -> None:
        """Kick after `delay_ns` (at least 1), instead of whenever it was armed for."""
        value = self._spec
        value.value_sec, value.value_nsec = divmod(max(1, delay_ns), _NS)
        libc.lib.timer_settime(self._id[0], 0, value, ffi.NULL)
        self._armed = True

    def disarm(self) -> None:
        """Do not kick."""
        if self._armed:
            self._spec.value_sec = self._spec.value_nsec = 0
            libc.lib.timer_settime(self._id[0], 0, self._spec, ffi.NULL)
            self._armed = False

    def close(self) -> None:
        """Free the timer."""
        if self._id is not None:
            libc.lib.timer_delete(self._id[0])
            self._id = None


def kick(ident: int, flag: int) -> None:
    """Kick the thread with Python ident `ident`, whose flag byte is at address `flag`."""
    _install()
    result = libc.lib.pthread_sigqueue(ident, KICK_SIGNAL, flag)
    if result == errno.EAGAIN:
        # The queue of pending signals is full, so one for this thread is surely on its way.
        return
    if result not in (0, errno.ESRCH):
        raise OSError(result, f"pthread_sigqueue: {os.strerror(result)}")
