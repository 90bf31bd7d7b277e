"""A loop in a thread of its own, for as long as a test lasts."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator


class Runs(Protocol):
    """What both our loop and the stand-alone xenstored's are."""

    def run(self) -> None: ...

    def stop(self) -> None: ...

    def close(self) -> None: ...


AnyLoop = TypeVar("AnyLoop", bound=Runs)


@contextmanager
def in_thread(loop: AnyLoop) -> Iterator[AnyLoop]:
    """Have a loop run; stop and close it in the end."""
    thread = threading.Thread(target=loop.run)
    thread.start()
    yield loop
    loop.stop()
    thread.join()
    loop.close()
