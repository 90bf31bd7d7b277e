"""What a backend does when its frontend's state and its own differ.

Ref: xen/include/public/io/xenbus.h
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from xenpy.abi.xenbus import XenbusState

if TYPE_CHECKING:
    from collections.abc import Mapping


class Step(Enum):
    """What a backend does about its frontend's state."""

    OFFER = auto()
    """Write what the device can do, go to InitWait."""
    CONNECT = auto()
    """Map what the frontend has written down, go to Connected."""
    RECONFIGURE = auto()
    """Hear the frontend's new wishes, stay connected."""
    CLOSING = auto()
    """Agree to the end; the frontend may still have requests under way."""
    CLOSE = auto()
    """Let go of everything of the guest's, then go to Closed; a device being unplugged goes altogether."""
    RESTART = auto()
    """Let go of everything of the guest's, then offer the device anew: the frontend was started again without a farewell."""


_S = XenbusState
STEPS: Final[Mapping[XenbusState, Mapping[XenbusState, Step]]] = {
    _S.InitWait: {
        _S.Initialised: Step.CONNECT,
        _S.Connected: Step.CONNECT,
        _S.Closing: Step.CLOSING,
        _S.Closed: Step.CLOSE,
        _S.Unknown: Step.CLOSE,
    },
    _S.Connected: {
        _S.Initialising: Step.RESTART,
        _S.Reconfigured: Step.RECONFIGURE,
        _S.Closing: Step.CLOSING,
        _S.Closed: Step.CLOSE,
        _S.Unknown: Step.CLOSE,
    },
    _S.Closing: {_S.Initialising: Step.RESTART, _S.Closed: Step.CLOSE, _S.Unknown: Step.CLOSE},
    _S.Closed: {_S.Initialising: Step.OFFER},
}
"""Our state -> the frontend's -> what to do, if anything."""
