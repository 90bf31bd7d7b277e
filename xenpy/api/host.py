"""The public Host: guests that share event channels, grants and xenstore, and the thread that serves them."""

from __future__ import annotations

import atexit
import os
import threading
from typing import TYPE_CHECKING, Self, TypeVar

from xenpy.errors import HostError
from xenpy.host import Host as Core

if TYPE_CHECKING:
    from collections.abc import Callable

    from xenpy.api.guest import Guest
    from xenpy.domain.domain import Domain

T = TypeVar("T")

_open: set[Host] = set()
_CHECK_S = 1.0


class Host:
    """What several guests live on; `with` closes it, and its guests before it, and so does the interpreter's exit.

    Raises HostError if there is no usable /dev/kvm.
    """

    def __init__(self) -> None:
        self.core = Core()
        """The hypervisor itself, for those who know it: its objects belong to `lock` or to the loop's thread."""
        self.core.on_end = self._on_end
        self.guests: list[Guest] = []
        """Those that are not closed yet."""
        self._closing = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="xenpy loop", daemon=True)
        self._thread.start()
        _open.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def lock(self) -> threading.RLock:
        """Return the lock that guards the hypervisor's state."""
        return self.core.lock

    def _serve(self) -> None:
        while not self._closed:
            try:
                self.core.loop.run()
            except Exception as error:  # a bug of ours must end what runs, not leave it hanging
                for guest in list(self.guests):
                    guest.domain.internal_error(error)

    def _on_end(self, domain: Domain) -> None:
        for guest in list(self.guests):
            if guest.domain is domain:
                guest.on_end()

    def call(self, action: Callable[[], T]) -> T:
        """Return what `action` returns, run in the loop's thread, where devices live. Raises what it raises, and HostError."""
        if threading.current_thread() is self._thread:
            return action()
        done = threading.Event()
        results: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(action())
            except BaseException as error:  # it is the caller's
                errors.append(error)
            finally:
                done.set()

        if not self._closed:
            self.core.loop.call_soon(run)
        while not done.wait(_CHECK_S if self._thread.is_alive() else 0):
            if not self._thread.is_alive():
                raise HostError("the host is closed")
        if errors:
            raise errors[0]
        return results[0]

    def close(self) -> None:
        """End all guests, free them and the host; idempotent."""
        with self._closing:
            if self._closed:
                return
            self.call(lambda: None)  # a guest whose maker was interrupted may still be under construction
            for guest in list(self.guests):
                guest.release()
            self._closed = True
            self.core.loop.stop()
            self._thread.join()
            self.core.close()
            _open.discard(self)


def _close_all() -> None:
    for host in list(_open):
        host.close()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_open.clear)  # the parent's guests are not the child's to end
