"""States of the two ends of a split driver, as they stand in xenstore.

Ref: xen/include/public/io/xenbus.h
"""

from __future__ import annotations

from enum import IntEnum


class XenbusState(IntEnum):
    """The value of an end's `state` node; a node that is absent or no state at all counts as Unknown."""

    Unknown = 0
    Initialising = 1
    InitWait = 2
    Initialised = 3
    Connected = 4
    Closing = 5
    Closed = 6
    Reconfiguring = 7
    Reconfigured = 8
