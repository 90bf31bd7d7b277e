"""The domains that a domU may name in its hypercalls: itself, as a rule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xenpy.abi.event_channel import DOMID_SELF
from xenpy.errors import Errno, XenError

if TYPE_CHECKING:
    from xenpy.hypercalls.call import Call
    from xenpy.hypercalls.protocols import Domain

DOM0: Final = 0


def own_domain(call: Call, domid: int) -> Domain:
    """Return the caller's domain, by its own number or DOMID_SELF. Raises XenError: ESRCH, EPERM for another."""
    if domid in (DOMID_SELF, call.domain.domid):
        return call.domain
    raise refusal(call, domid)


def refusal(call: Call, domid: int) -> XenError:
    """Return how a domain that is not the caller is refused: EPERM. Raises XenError(ESRCH) if it is not there; domain 0 is, as ever."""
    if domid != DOM0:
        call.domain.peer(domid)
    return XenError(Errno.EPERM, f"domain {domid:#x} is not the caller")
