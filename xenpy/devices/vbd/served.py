"""A disk in a process of its own: the queues and the medium, as the VMM has described them."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from xenpy.abi.blkif import LAYOUTS
from xenpy.devices.isolation.child import serve_in_threads
from xenpy.devices.journal import Journal
from xenpy.devices.vbd.backing import RawBacking
from xenpy.devices.vbd.overlay import Overlay
from xenpy.devices.vbd.pages import GrantedPages
from xenpy.devices.vbd.queue import BlockQueue
from xenpy.devices.vbd.requests import BlockRing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from xenpy.devices.isolation.channel import Channel
    from xenpy.devices.isolation.child import Job, Line
    from xenpy.devices.vbd.backing import Backing


def main(job: Job, control: Channel) -> None:
    """Serve the queues until told to stop."""
    if _is_alone():
        # Who has just got a request would take the processor from the guest that is about to make more. SCHED_IDLE, which the VMM
        # may have been started with, yields as well, and leaving it takes a right that we may not have.
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    device = job.device
    backing = adopt(device["kind"], device["fields"], job.fds)
    servers = [_server(job, line, ring, backing) for line, ring in zip(job.lines, device["rings"], strict=True)]
    serve_in_threads(job, control, servers)


def _is_alone() -> bool:
    """Tell whether there is one processor for guest and disk, so that either waits while the other works."""
    return len(os.sched_getaffinity(0)) == 1


def adopt(kind: str, fields: Mapping[str, Any], fds: Sequence[int]) -> Backing:
    """Return the medium that a parcel describes."""
    if kind == "overlay":
        own, base = fds[:2], fds[2:]
        return Overlay.adopt(adopt(fields["kind"], fields["fields"], base), own)
    return RawBacking.adopt(fields, fds)


def _server(job: Job, line: Line, offsets: Sequence[int], backing: Backing) -> Callable[[Callable[[], bool]], None]:
    layout = LAYOUTS[job.device["protocol"]]
    journal = Journal(line.state, job.device["entries"], layout.entry_size)
    ring_pages = [job.ram.page(offset) for offset in offsets]
    ring = BlockRing(ring_pages, layout, journal)

    def notify() -> None:
        os.eventfd_write(line.notify, 1)

    if journal.owes_event(ring_pages[0]):
        notify()
    queue = BlockQueue(ring, GrantedPages(line.grants, persistent=job.device["kept"]), backing, notify)

    queue.together = _is_alone()
    queue.grown = backing.refresh  # the VMM, which has told the guest of a new size, has no need to tell us
    return queue.serve
